"""Every bad input gives a right report, or an error that says where, what was got, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from profiler.errors import ConfigError, DataError, ModelError, PrepareError, ProfilerError
from profiler.quant import March, convert, set_march
from tests.api.calls import Half, Net, batch, fails, reports
from tests.capture.stages import calibrated, images

FX = {"frontend": "fx"}


class KeywordOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, *, x: Tensor, gain: Tensor) -> Tensor:
        return self.fc(x * gain)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _nothing() -> Iterator[Tensor]:
    yield from ()


@pytest.mark.parametrize(
    "make",
    [list, _nothing, lambda: DataLoader(TensorDataset(torch.empty(0, 1, 4, 4))), tuple],
    ids=["list", "generator", "loader", "tuple"],
)
def test_empty_data_is_an_error(make: Callable[[], Any]) -> None:
    fails(DataError, ["holds no batch", "pass a tensor"], Net(), make())


def test_empty_batch_is_an_error() -> None:
    fails(DataError, ["batch 0, tensor 0", "(0, 1, 4, 4)", "holds no values"], Net(), torch.empty(0, 1, 4, 4))


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (
            images(2, 3, 4, 4),
            ["float model, batch 0 ((2, 3, 4, 4) torch.float32)", "RuntimeError", "batch_process_func"],
        ),
        (images(2, 1, 4, 4).long(), ["batch 0", "torch.int64", "RuntimeError"]),
        ([images(2, 1, 4, 4), images(2, 3, 4, 4)], ["float model, batch 1 ((2, 3, 4, 4)", "RuntimeError"]),
        (
            {"y": images(2, 1, 4, 4)},
            ["batch 0", "does not fit Net.forward", "missing a required argument: 'x'", "batch_process_func"],
        ),
        ({}, ["batch 0", "does not fit Net.forward", "missing"]),
        ([["a", "b"]], ["batch 0 holds no tensor"]),
        (["text"], ["batch 0 is str", "expected a tensor", "batch_process_func"]),
        ("text", ["data is str", "expected one batch"]),
        (3, ["data is int", "expected one batch"]),
        (None, ["data is NoneType", "expected one batch"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_batch_that_the_model_does_not_accept_is_an_error(data: Any, parts: list[str]) -> None:
    error = ModelError if parts[0].startswith("float model, batch 1") else DataError
    fails(error, parts, Net(), data)


def test_model_that_raises_on_the_first_batch() -> None:
    fails(DataError, ["float model, batch 0 ((3, 1, 4, 4)", "ValueError: planted"], Half(), [batch(3), batch()])


def test_model_that_raises_on_the_third_batch() -> None:
    fails(
        ModelError, ["float model, batch 2 ((3, 1, 4, 4)", "ValueError: planted"], Half(), [batch(), batch(), batch(3)]
    )


def test_nan_in_the_weights() -> None:
    model = Net()
    with torch.no_grad():
        model.fc.weight[0, :3] = torch.nan
        model.bn.running_var[0] = torch.inf
    parts = ["Net has NaN or Inf", "fc.weight: 3 of 24 values", "bn.running_var: 1 of 2 values", "checkpoint"]
    fails(ModelError, parts, model, batch())


def test_nan_in_the_data() -> None:
    bad = batch()
    bad[0, 0, 0, :2] = torch.nan
    fails(
        DataError,
        ["batch 1, tensor 0 (2, 1, 4, 4)", "2 values are NaN or Inf", "clean the data"],
        Net(),
        [batch(), bad],
    )


def test_model_in_train_mode_is_profiled_in_eval_and_said_so(tmp_path: Path) -> None:
    model = Net().train()
    report = reports(model, [batch(), batch(seed=1)], tmp_path)
    assert any("was in training mode" in note for note in report.data.notes)
    assert model.training


def test_mixed_training_flags_come_back_one_by_one(tmp_path: Path) -> None:
    model = Net().train()
    model.bn.eval()
    reports(model, batch(), tmp_path)
    assert (model.training, model.bn.training, model.conv.training) == (True, False, True)


def _pairs() -> Iterator[tuple[Tensor, Tensor]]:
    yield batch(), torch.zeros(2)
    yield batch(seed=1), torch.zeros(2)


@pytest.mark.parametrize(
    "data",
    [
        list(_pairs()),
        DataLoader(TensorDataset(batch(4), torch.arange(4)), batch_size=2),
        [[batch(), torch.zeros(2)]],
        (batch(), torch.zeros(2)),
    ],
    ids=["tuples", "DataLoader", "lists", "one tuple"],
)
def test_labels_are_dropped_and_said_so(data: Any, tmp_path: Path) -> None:
    report = reports(Net(), data, tmp_path)
    assert "each batch holds 2 values, the forward takes 1: the rest (labels?) was dropped" in report.data.notes


@pytest.mark.parametrize("data", [{"x": batch()}, [{"x": batch()}, {"x": batch(3)}]], ids=["one", "list"])
def test_dict_batch_is_keyword_arguments(data: Any, tmp_path: Path) -> None:
    reports(Net(), data, tmp_path)


def test_batch_process_func_makes_the_batch(tmp_path: Path) -> None:
    reports(Net(), [{"image": batch(), "label": 3}], tmp_path, batch_process_func=lambda given: given["image"])


def test_batch_process_func_that_raises_is_named() -> None:
    parts = ["batch 1", "batch_process_func raised KeyError"]
    process = lambda given: given["image"]  # noqa: E731
    fails(DataError, parts, Net(), [{"image": batch()}, {"other": batch()}], batch_process_func=process)


def test_data_that_raises_while_it_is_read_is_named() -> None:
    def broken() -> Iterator[Tensor]:
        yield batch()
        raise OSError("disk gone")

    fails(DataError, ["the data raised OSError while batch 1 was read", "disk gone"], Net(), broken())


def test_data_is_read_no_further_than_num_batches(tmp_path: Path) -> None:
    def endless() -> Iterator[Tensor]:
        while True:
            yield batch()

    report = reports(Net(), endless(), tmp_path, num_batches=2)
    assert report.data.arguments["num_batches"] == "2"


def test_users_tensors_are_not_changed(tmp_path: Path) -> None:
    class InPlace(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mul_(2))

    x = batch()
    reports(InPlace(), x, tmp_path)
    assert torch.equal(x, batch())


@pytest.mark.parametrize("num_batches", [0, -1])
def test_num_batches_below_one(num_batches: int) -> None:
    fails(DataError, [f"num_batches is {num_batches}", "at least 1"], Net(), batch(), num_batches=num_batches)


@pytest.mark.parametrize(
    ("model", "got"), [(Net, "type"), (None, "NoneType"), ("net.pth", "str"), ({}, "dict")], ids=str
)
def test_not_a_module(model: Any, got: str) -> None:
    fails(ModelError, [f"model is {got}", "expected an nn.Module", "call the class"], model, batch())


def test_converted_model_alone() -> None:
    converted = convert(calibrated(Net().eval(), "fx", batch()))
    fails(ModelError, ["converted (integer) model alone", "calib or qat model"], converted, batch())


def test_unknown_march() -> None:
    fails(ConfigError, ["march 'mars' is unknown", "bayes"], Net(), batch(), march="mars")


def test_march_of_the_caller_comes_back(tmp_path: Path) -> None:
    from profiler.quant import get_march

    set_march(March.NASH_E)
    reports(Net(), batch(), tmp_path, march="bayes")
    assert get_march() is March.NASH_E


def test_unknown_key_in_the_qconfig_dict() -> None:
    fails(ConfigError, ["unknown keys ['modules']", "module_name"], Net(), batch(), qconfig_dict={"modules": {}})


def test_arguments_of_the_other_form() -> None:
    fails(ConfigError, ["mode", "leave them out"], Net(), batch(), mode="FvsQ")


@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.GLU(0)), nn.Identity(), nn.EmbeddingBag(4, 2)], ids=lambda m: type(m).__name__
)
def test_model_without_any_quantizable_op(model: nn.Module) -> None:
    x = torch.zeros(2, 3).long() if isinstance(model, nn.EmbeddingBag) else images(2, 3)
    fails(PrepareError, [type(model).__name__, "no op", "quantized form"], model, x)


def test_model_without_parameters(tmp_path: Path) -> None:
    class Pool(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum((2, 3))

    fails(PrepareError, ["Pool", "quantized form"], Pool(), batch())


@pytest.mark.parametrize("model", [nn.Linear(4, 3), nn.Conv2d(1, 2, 3)], ids=lambda m: type(m).__name__)
def test_model_that_is_one_op(model: nn.Module, tmp_path: Path) -> None:
    report = reports(model, images(2, 1, 4, 4), tmp_path)
    assert report.data.main is not None
    assert len(report.data.main.weights) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_float_dtypes_give_a_right_report_or_a_clear_error(dtype: torch.dtype, tmp_path: Path) -> None:
    model, x = Net().to(dtype).eval(), batch().to(dtype)
    if dtype is torch.float64:
        reports(model, x, tmp_path)
        return
    fails(ModelError, [str(dtype), "float32", "model.float()"], model, x, out_dir=tmp_path)


def test_keyword_only_forward(tmp_path: Path) -> None:
    data = [{"x": images(3, 4), "gain": torch.ones(3, 4)}] * 2
    reports(KeywordOnly(), data, tmp_path)


def test_flags_that_differ_between_batches_are_an_error() -> None:
    class Flagged(Net):
        def forward(self, x: Tensor, double: bool = False) -> Tensor:
            y = super().forward(x)
            return y * 2 if double else y

    data = [{"x": batch(), "double": False}, {"x": batch(), "double": True}]
    fails(DataError, ["batch 1", "'double': True", "'double': False", "profile each kind"], Flagged(), data, **FX)


def test_flags_that_differ_between_batches_are_recorded_where_nothing_else_is_asked_for(tmp_path: Path) -> None:
    class Flagged(Net):
        def forward(self, x: Tensor, double: bool = False) -> Tensor:
            y = super().forward(x)
            return y * 2 if double else y

    data = [{"x": batch(), "double": False}, {"x": batch(), "double": True}]
    report = reports(Flagged(), data, tmp_path)
    front_end = report.data.effects[0]
    assert front_end.actual == "record"
    assert "batch 1 has the arguments" in front_end.reason
    assert any(layer.op_name == "mul_0" for layer in report.layers)


def test_forward_that_raises_in_the_middle_of_the_comparison(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Late(Net):
        """Raises once calibration is over."""

        is_armed = False

        def forward(self, x: Tensor) -> Tensor:
            if Late.is_armed:
                raise RuntimeError("planted")
            return super().forward(x)

    def progress(step: str, done: int, total: int) -> None:
        Late.is_armed = Late.is_armed or step.startswith("compare")

    given = {"out_dir": tmp_path, "progress": progress, "frontend": "record"}
    fails(ProfilerError, ["batch", "RuntimeError: planted"], Late(), [batch(), batch()], **given)
    assert list(tmp_path.iterdir()) == []


def test_flags_that_are_arrays_are_compared_by_value(tmp_path: Path) -> None:
    class TakesMeta(Net):
        def forward(self, x: Tensor, meta: Any = None) -> Tensor:
            return super().forward(x)

    same = [{"x": batch(seed=i), "meta": np.array([1, 2])} for i in range(2)]
    reports(TakesMeta(), same, tmp_path)
    other = [same[0], {**same[1], "meta": np.array([1, 3])}]
    fails(DataError, ["batch 1", "expected the same in all batches"], TakesMeta(), other, **FX)
