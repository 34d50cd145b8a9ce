"""compile_model and load_compiled."""

from __future__ import annotations

import json
import logging
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from profiler.errors import ConfigError, DataError, ModelError, StateError
from profiler.quant import (
    DeQuantStub,
    FakeQuantState,
    QuantStub,
    check_model,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_16bit_fake_quant_qconfig,
    prepare_qat_fx,
    quantize,
    set_fake_quantize,
)
from profiler.quant.deploy.compile import compile_model, load_compiled
from profiler.quant.deploy.structure import bind_inputs
from tests.quant.deploy.models import BATCHES, IMAGE, Net, converted
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.stages import fx


@pytest.fixture(scope="module")
def model() -> Any:
    return converted()


@pytest.mark.parametrize("front_end", ["eager", "fx"])
@pytest.mark.parametrize("qconfig", [default_calib_8bit_fake_quant_qconfig, default_calib_16bit_fake_quant_qconfig])
def test_net_equals_onnx_runtime_op_by_op(front_end: str, qconfig: Any) -> None:
    exported = assert_equals_onnx(converted(front_end, qconfig), IMAGE, num_codes=6)

    assert exported.output_names == ["logits", "boxes"]


@pytest.mark.parametrize("suffix", ["onnx", "hbm"])
def test_compiled_file_gives_the_models_outputs_in_its_structure(suffix: str, model: Any, tmp_path: Path) -> None:
    path = tmp_path / "deep" / f"net.{suffix}"

    assert compile_model(model, [IMAGE], hbm=path) == 0
    outputs = load_compiled(path)(IMAGE)

    expected = model(IMAGE)
    assert list(outputs) == ["logits", "boxes"]
    for name, value in expected.items():
        torch.testing.assert_close(outputs[name], value, rtol=0, atol=1e-6 * float(value.abs().max()))


def test_archive_holds_scales_ops_and_versions(model: Any, tmp_path: Path) -> None:
    compile_model(model, IMAGE, tmp_path / "net.hbm", name="net", opt="O3", input_source="pyramid", extra_args=["-x"])

    with zipfile.ZipFile(tmp_path / "net.hbm") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    assert sorted(parts) == ["model.onnx", "ops.json", "scales.json", "settings.json", "versions.json"]
    scales = json.loads(parts["scales.json"])
    assert scales["quant"] == {"dtype": "qint8", "scale": float(model.quant.out_scale)}
    assert set(json.loads(parts["versions.json"])) == {"torch", "onnx", "onnxruntime"}
    settings = json.loads(parts["settings.json"])
    assert (settings["march"], settings["opt"], settings["input_source"]) == ("bayes", 3, "pyramid")
    assert settings["extra_args"] == ["-x"]
    assert "no vendor hardware" in settings["note"]
    onnx.checker.check_model(onnx.load_from_string(parts["model.onnx"]), full_check=True)


def test_convolutions_run_as_qlinear_conv(model: Any, tmp_path: Path) -> None:
    compile_model(model, IMAGE, tmp_path / "net.onnx")

    graph = onnx.load(tmp_path / "net.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QLinearConv") == 1  # the stem; a fused add and a float output stay explicit
    assert kinds.count("ConvInteger") == 2
    assert kinds.count("MatMulInteger") == 1
    assert not {"Conv", "MatMul", "Gemm"} & set(kinds)
    stem = next(node for node in graph.node if node.op_type == "QLinearConv")
    assert stem.name == "stem.0/QLinearConv"
    scale = next(i for i in graph.initializer if i.name == stem.input[1])
    assert float(onnx.numpy_helper.to_array(scale)) == float(model.quant.out_scale)


@pytest.mark.parametrize("inputs", [IMAGE, [IMAGE], (IMAGE,), {"image": IMAGE}, IMAGE.double().float()])
def test_inputs_in_every_form(inputs: Any, model: Any, tmp_path: Path) -> None:
    assert compile_model(model, inputs, tmp_path / "net.onnx", opt=0) == 0
    assert load_compiled(tmp_path / "net.onnx").metadata["inputs"] == ["image"]


def test_numpy_in_gives_numpy_out(model: Any, tmp_path: Path) -> None:
    compile_model(model, IMAGE, tmp_path / "net.onnx")

    outputs = load_compiled(tmp_path / "net.onnx")(IMAGE.numpy())

    assert isinstance(outputs["logits"], np.ndarray)


def test_layouts_are_those_of_the_file(model: Any, tmp_path: Path) -> None:
    compile_model(model, IMAGE, tmp_path / "net.onnx", input_layout="NHWC", output_layout="NHWC")

    outputs = load_compiled(tmp_path / "net.onnx")(IMAGE.permute(0, 2, 3, 1).contiguous())

    boxes = model(IMAGE)["boxes"]
    assert outputs["boxes"].shape == (2, 6, 6, 4)
    torch.testing.assert_close(
        outputs["boxes"].permute(0, 3, 1, 2), boxes, rtol=0, atol=1e-6 * float(boxes.abs().max())
    )


def test_other_shape_is_refused_with_what_to_do(model: Any, tmp_path: Path) -> None:
    compile_model(model, IMAGE, tmp_path / "net.onnx")

    with pytest.raises(DataError, match=r"'N', 3, 12, 12.*N may be any number.*compile again"):
        load_compiled(tmp_path / "net.onnx")(IMAGE[..., 1:])


def test_other_batch_size_of_a_static_file_is_refused_with_the_reason(model: Any, tmp_path: Path) -> None:
    compile_model(model, IMAGE, tmp_path / "net.onnx", dynamic_batch=False)

    with pytest.raises(DataError, match=r"2, 3, 12, 12.*compile again.*dynamic_batch=False.*dynamic_batch=True"):
        load_compiled(tmp_path / "net.onnx")(IMAGE[:1])


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_free_batch_runs_at_every_size(front_end: str, layout: str, tmp_path: Path) -> None:
    model = converted(front_end)
    images = torch.cat([IMAGE, IMAGE.flip(-1), IMAGE[:1] * 0.3])

    assert compile_model(model, IMAGE[:1], tmp_path / "net.hbm", dynamic_batch=True, input_layout=layout) == 0
    run = load_compiled(tmp_path / "net.hbm")

    for size in range(1, 6):
        image = images[:size]
        actual = run(image if layout == "NCHW" else image.permute(0, 2, 3, 1))
        for name, expected in model(image).items():
            assert actual[name].shape == expected.shape
            torch.testing.assert_close(actual[name], expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("wrong", ["yes", 1, [], ["image", 1], None])
def test_wrong_dynamic_batch_is_refused(wrong: Any, model: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="True, False, 'auto' or a list"):
        compile_model(model, IMAGE, tmp_path / "net.onnx", dynamic_batch=wrong)


def test_unknown_name_in_dynamic_batch_is_refused(model: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the inputs are image"):
        compile_model(model, IMAGE, tmp_path / "net.onnx", dynamic_batch=["picture"])


def test_traced_model_without_warning_and_bit_for_bit_a8(model: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(model, IMAGE, strict=False)
    other = BATCHES[1]
    for name, value in model(other).items():
        assert torch.equal(traced(other)[name], value)

    assert compile_model(traced, [IMAGE], opt=0, hbm=str(tmp_path / "net.hbm")) == 0

    outputs = load_compiled(tmp_path / "net.hbm")(other)
    for name, value in model(other).items():
        torch.testing.assert_close(outputs[name], value, rtol=0, atol=1e-6 * float(value.abs().max()))


def test_traced_and_saved_model_compiles_too(model: Any, tmp_path: Path) -> None:
    traced = torch.jit.trace(model, IMAGE, strict=False)
    traced.save(str(tmp_path / "net.pt"))

    compile_model(torch.jit.load(str(tmp_path / "net.pt")), IMAGE, tmp_path / "net.onnx")

    kinds = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
    assert kinds.count("QLinearConv") == 1
    assert not {"Conv", "MatMul", "Gemm"} & set(kinds)


def test_reassembled_parts_compile(tmp_path: Path) -> None:
    model = converted("eager")

    class Deploy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.stem, self.dequant = model.quant, model.stem, model.dequant_a

        def forward(self, x: Any) -> Any:
            return self.dequant(self.stem(self.quant(x)))

    compile_model(Deploy().eval(), IMAGE, tmp_path / "part.onnx")

    actual = load_compiled(tmp_path / "part.onnx")(IMAGE)
    assert torch.equal(actual, Deploy().eval()(IMAGE))


def test_float_model_is_refused() -> None:
    with pytest.raises(ModelError, match="float model"):
        compile_model(Net().eval(), IMAGE, "net.onnx")


def test_prepared_model_is_refused() -> None:
    with pytest.raises(ModelError, match="not converted"):
        compile_model(fx(Net().eval(), BATCHES), IMAGE, "net.onnx")


def test_traced_float_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="trace a converted model"):
        compile_model(torch.jit.trace(nn.Conv2d(3, 3, 1).eval(), IMAGE), IMAGE, tmp_path / "net.onnx")


def test_training_mode_is_refused(model: Any) -> None:
    model.train()
    try:
        with pytest.raises(StateError, match="training mode"):
            compile_model(model, IMAGE, "net.onnx")
    finally:
        model.eval()


def test_live_observers_are_refused() -> None:
    from profiler.quant.deploy.viewing import export_to_onnx

    prepared = prepare_qat_fx(Net().eval(), {"": default_calib_8bit_fake_quant_qconfig}).eval()
    set_fake_quantize(prepared, FakeQuantState.CALIBRATION)

    with pytest.raises(StateError, match="observers are on"):
        export_to_onnx(prepared, IMAGE, "net.onnx")


@pytest.mark.parametrize("arguments", [
    {"opt": 4}, {"opt": "O9"}, {"input_source": "moon"}, {"input_layout": "CHWN"}, {"march": "mars"},
    {"input_source": None}, {"input_source": []}, {"input_source": 3}, {"input_source": ["ddr", None]},
])  # fmt: skip
def test_unknown_arguments_are_refused(arguments: dict[str, Any], model: Any) -> None:
    with pytest.raises(ConfigError, match=r"expected|use one of"):
        compile_model(model, IMAGE, "net.onnx", **arguments)


@pytest.mark.parametrize("sources", [["ddr", "ddr"], {"image": "ddr", "other": "ddr"}])
def test_another_number_of_sources_than_inputs_is_refused(sources: Any, model: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 sources for the 1 inputs image; give one for each"):
        compile_model(model, IMAGE, tmp_path / "net.onnx", input_source=sources)
    assert not (tmp_path / "net.onnx").exists()
    assert compile_model(model, IMAGE, tmp_path / "net.onnx", input_source=("pyramid",)) == 0


@pytest.mark.parametrize("factor", [-1, 101, True])
def test_balance_factor_outside_of_its_range_is_refused(factor: Any, model: Any) -> None:
    with pytest.raises(ConfigError, match=r"balance_factor.*0\.\.100"):
        compile_model(model, IMAGE, "net.onnx", balance_factor=factor)


def test_folder_in_the_place_of_the_file_is_refused(model: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        compile_model(model, IMAGE, tmp_path)


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"zz": IMAGE}, r"'zz' are not the parameters of forward \(image\)"),
        ({"image": IMAGE, "y": IMAGE}, "'image', 'y' are not the"),
        ((IMAGE, IMAGE), "too many positional"),
    ],
)
@pytest.mark.parametrize("call", [check_model, lambda model, inputs: compile_model(model, inputs, "net.onnx")])
def test_inputs_that_forward_does_not_take_are_told(call: Any, inputs: Any, told: str, model: Any) -> None:
    with pytest.raises(ConfigError, match=told):
        call(model, inputs)


@pytest.mark.parametrize("inputs", [IMAGE, {"image": IMAGE}])
def test_missing_input_is_named(inputs: Any) -> None:
    class Two(Net):
        def forward(self, image: Any, other: Any) -> Any:
            return super().forward(image + other)

    with pytest.raises(ConfigError, match="missing a required argument: 'other'"):
        bind_inputs(Two(), inputs)


def test_ops_that_the_march_lacks_are_counted_and_logged(model: Any, tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        assert compile_model(model, IMAGE, tmp_path / "net.onnx", march="bernoulli2") == 1

    assert "not on bernoulli2: fc: bernoulli2 has no linear" in caplog.text
    assert load_compiled(tmp_path / "net.onnx").metadata["march"] == "bernoulli2"


@pytest.mark.parametrize("content", [b"no model", b"", b"\x00" * 64, b"garbage" * 99])
def test_garbage_is_neither_an_archive_nor_a_model(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.hbm"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match="neither an archive nor an ONNX model"):
        load_compiled(path)


@pytest.mark.parametrize("content", [None, b"no model", "zip"])
def test_file_of_somebody_else_is_refused(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "other.hbm"
    if content == "zip":
        zipfile.ZipFile(path, "w").close()
    elif content is not None:
        path.write_bytes(content)

    with pytest.raises(ConfigError, match="compile_model"):
        load_compiled(path)


def test_r36_both_halves_of_a_split_model_compile_to_the_whole(tmp_path: Path) -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.quant, self.cut, self.dequant = QuantStub(), QuantStub(), DeQuantStub()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

        def begin(self, x: Any) -> Any:
            return self.first(self.quant(x))

        def end(self, x: Any) -> Any:
            return self.dequant(self.second(self.cut(x)))

        def forward(self, x: Any) -> Any:
            return self.end(self.begin(x))

    class Part(nn.Module):
        def __init__(self, method: Any) -> None:
            super().__init__()
            self.model, self.method = whole, method

        def forward(self, x: Any) -> Any:
            return self.method(x)

    whole = converted("eager", model=Cut())
    front = Part(lambda x: whole.dequant(whole.begin(x))).eval()
    middle = front(IMAGE)
    compile_model(front, IMAGE, tmp_path / "front.hbm")
    compile_model(Part(whole.end).eval(), middle, tmp_path / "back.hbm")

    halves = load_compiled(tmp_path / "back.hbm")(load_compiled(tmp_path / "front.hbm")(IMAGE))

    assert torch.equal(halves, whole(IMAGE))


def test_article_flow_of_an_eager_model_with_in_place_activations(tmp_path: Path) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.quant, self.dequant, self.conv = QuantStub(), DeQuantStub(), nn.Conv2d(3, 4, 3)
            self.act = nn.ReLU6(inplace=True)

        def forward(self, x: Any) -> Any:
            return self.dequant(self.act(self.conv(self.quant(x))))

    model = converted("eager", model=Block())
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(model, IMAGE)

    assert torch.equal(traced(BATCHES[1]), model(BATCHES[1]))
    assert check_model(traced, IMAGE, advice=1) == 0
    assert compile_model(traced, [IMAGE], opt=0, hbm=str(tmp_path / "model.hbm")) == 0
    assert torch.equal(load_compiled(tmp_path / "model.hbm")(BATCHES[1]), model(BATCHES[1]))


def test_compile_after_quantize_needs_no_march(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiler.quant.march._current", None)
    x = torch.randn(2, 8)
    stages = quantize(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), [x])

    assert compile_model(stages.quantized, [x], hbm=str(tmp_path / "net.onnx")) == 0
    with torch.no_grad():
        assert torch.equal(load_compiled(tmp_path / "net.onnx")(x), stages.quantized(x))
