"""Exported files whose batch size is free, and the reasons why it cannot be."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.errors import DataError, UnsupportedOpError
from profiler.quant import compile_model, load_compiled
from profiler.quant.deploy.batch import BatchInputs, free_batch
from profiler.quant.deploy.export import record_model
from tests.quant.deploy.functions import Function, ints, rand
from tests.quant.deploy.models import IMAGE, converted
from tests.quant.onnx_check import assert_free_batch

X = rand(2, 4, 6)


def write_rows(x: Tensor) -> Tensor:
    y = torch.zeros(x.shape[0], 4, 6)
    for i in range(4):
        y[:, i] = x[:, 3 - i] * i
    return y


def write_steps(x: Tensor) -> Tensor:
    """Time first: the batch is the second axis of what is written."""
    steps = torch.zeros(4, x.shape[0], 6)
    for i in range(4):
        steps[i] = x[:, i] + 1
    return steps.transpose(0, 1)


FREE: dict[str, Callable[..., Any]] = {
    "heads": lambda x: x.reshape(x.shape[0] * 4, 3, 2).transpose(1, 2).reshape(-1, 24) + 1,
    "class token": lambda x: torch.cat([torch.full((1, 1, 6), 0.5).expand(x.shape[0], -1, -1), x], 1),
    "state of zeros": lambda x: x[:, 0] + torch.zeros(x.shape[0], 6),
    "row numbers": lambda x: x * torch.arange(x.shape[0]).flip(0).reshape(-1, 1, 1) + x,
    "mean over the batch": lambda x: x / x.shape[0],
    "written by rows": write_rows,
    "written by steps": write_steps,
    "strided view": lambda x: x.as_strided((x.shape[0], 3, 6), (24, 6, 1), 6) * 2,
    "unfold": lambda x: x.unfold(1, 2, 1).sum(-1),
    "mixed rows": lambda x: x.flip(0).cumsum(0),
    "two outputs": lambda x: {"rows": x.sum((1, 2)), "all": x.reshape(-1), "fixed": x.sum(0)},
    "more rows": lambda x: torch.cat([x, x[:1]]),
}
FIXED: dict[str, tuple[Callable[..., Any], str]] = {
    "loop over the batch": (lambda x: torch.stack([row * 2 for row in x]), "runs otherwise at batch size"),
    "factor by the batch": (lambda x: x * x.shape[0] ** 0.5, "constant of its Mul depends on the batch size"),
    "fixed view": (lambda x: x.view(2, 24), "does not run at batch size"),
    "squeeze": (lambda x: x[..., :1, :1].squeeze() * 2, "at 1"),
}


def freed(function: Callable[..., Any], *inputs: Tensor, names: list[str] | None = None) -> Any:
    model = Function(function).eval()
    record = partial(record_model, model)
    return free_batch(record(inputs), BatchInputs.of(model, inputs, names), record, 2)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", FREE)
def test_batch_is_free_and_every_size_gives_torchs_values(name: str, size: int) -> None:
    assert_free_batch(Function(FREE[name]).eval(), rand(size, 4, 6), sizes=(1, 2, 3, 4, 6))


@pytest.mark.parametrize("name", FIXED)
def test_batch_stays_fixed_with_the_reason(name: str) -> None:
    function, reason = FIXED[name]

    with pytest.raises(UnsupportedOpError, match=reason):
        freed(function, X)


def test_path_that_only_large_batches_take_keeps_the_batch_fixed() -> None:
    with pytest.raises(UnsupportedOpError, match="differs at 8"):
        freed(lambda x: x * 2 if x.shape[0] > 6 else x * 3, rand(8, 4, 6))


@pytest.mark.parametrize("size", [3, 8])
def test_path_that_no_small_batch_takes_keeps_the_batch_fixed(size: int) -> None:
    with pytest.raises(UnsupportedOpError, match=r"differs at (16|67)"):
        freed(lambda x: x * 2 if x.shape[0] > 8 else x * 3, rand(size, 4, 6))
    with pytest.raises(UnsupportedOpError, match="differs at 67"):
        freed(lambda x: (x * 3)[: min(x.shape[0], 16)], rand(size, 4, 6))


def test_python_number_that_depends_on_the_batch_keeps_it_fixed(tmp_path: Path, caplog: Any) -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = converted()

        def forward(self, x: Tensor) -> Any:
            return {"y": self.model(x)["logits"], "n": [x.shape[0], "same"]}

    model, images = Counted().eval(), IMAGE[:1].expand(5, -1, -1, -1)
    caplog.set_level(logging.INFO)

    compile_model(model, images, tmp_path / "net.onnx")

    assert load_compiled(tmp_path / "net.onnx")(images)["n"] == [5, "same"]
    assert "output['n'][0] is a Python int that depends on the batch size" in caplog.text
    with pytest.raises(UnsupportedOpError, match=r"output\['n'\]\[0\] is a Python int"):
        compile_model(model, images, tmp_path / "net.onnx", dynamic_batch=True)


def test_output_of_another_structure_keeps_the_batch_fixed() -> None:
    with pytest.raises(UnsupportedOpError, match="another structure at batch size 1"):
        freed(lambda x: {"y": x * 2, "names": ["row"] * x.shape[0]}, X)


def test_reason_names_op_and_line() -> None:
    def forward(x: Tensor) -> Tensor:
        return x * 2 * x.shape[0] ** 0.5

    with pytest.raises(UnsupportedOpError, match=r"mul_1 \[.*test_batch.py:\d+ .*x \* 2 \* x.shape"):
        freed(forward, X)


def test_shapes_of_inputs_and_outputs_carry_the_batch() -> None:
    exported = freed(lambda x, table: (x @ table, torch.cat([x, x]), table + 1), X, rand(6, 3))

    graph = exported.proto.graph
    sizes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in [*graph.input, *graph.output]]
    assert sizes == [["N", 4, 6], [6, 3], ["N", 4, 3], ["2*N", 4, 6], [6, 3]]


def test_input_that_happens_to_be_as_long_stays_fixed_when_others_are_named() -> None:
    table = rand(2, 6)
    with pytest.raises(UnsupportedOpError, match="does not run at batch size"):
        freed(lambda x, table: x[:, :2] * table, X, table)

    exported = freed(lambda x, table: x[:, :2] * table, X, table, names=["input_0"])

    shape = exported.proto.graph.input[1].type.tensor_type.shape.dim
    assert [d.dim_value for d in shape] == [2, 6]


def test_integers_and_masks_as_inputs() -> None:
    tokens = ints(2, 5, low=0, high=9, dtype=torch.int64)
    embedding = nn.Embedding(9, 6)

    def forward(tokens: Tensor, mask: Tensor) -> Tensor:
        hidden = embedding(tokens).masked_fill(mask[:, :, None], 0.0)
        return hidden + torch.arange(tokens.shape[1])[None, :, None]

    assert_free_batch(Function(forward).eval(), tokens, tokens > 4)


def test_inputs_without_axes_have_no_batch() -> None:
    with pytest.raises(UnsupportedOpError, match="no batch axis"):
        freed(lambda x: x * 2, torch.tensor(1.0))


def test_converted_net_with_the_batch_of_every_example() -> None:
    for size in (1, 2):
        exported = assert_free_batch(converted(), IMAGE[:size])
        assert [d.dim_param for d in exported.proto.graph.input[0].type.tensor_type.shape.dim] == ["N", "", "", ""]


class PerImage(nn.Module):
    """Runs a converted model on one image after the other."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.model(image[None])["logits"] for image in images])


def test_compile_says_why_a_file_is_static(tmp_path: Path, caplog: Any) -> None:
    model = PerImage(converted()).eval()
    caplog.set_level(logging.INFO)

    compile_model(model, IMAGE, tmp_path / "net.onnx")

    assert "the batch size stays that of the example inputs" in caplog.text
    run = load_compiled(tmp_path / "net.onnx")
    assert "runs otherwise at batch size" in run.metadata["fixed_batch"]
    with pytest.raises(DataError, match=r"\[2, 3, 12, 12\]|'float32', 2.*runs otherwise at batch size"):
        run(IMAGE[:1])
    with pytest.raises(UnsupportedOpError, match=r"dynamic_batch=True: .*runs otherwise"):
        compile_model(model, IMAGE, tmp_path / "net.onnx", dynamic_batch=True)


def test_sizes_of_several_inputs_must_agree(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = converted()

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.model(a)["logits"] + self.model(b)["logits"]

    compile_model(Pair().eval(), (IMAGE, IMAGE), tmp_path / "net.onnx", dynamic_batch=True)
    run = load_compiled(tmp_path / "net.onnx")

    assert run(IMAGE[:1], IMAGE[:1]).shape == (1, 5)
    with pytest.raises(DataError, match="N may be any number, the same wherever it stands"):
        run(IMAGE, IMAGE[:1])
