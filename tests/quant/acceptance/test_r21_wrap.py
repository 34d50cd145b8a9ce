"""R21: wrapped code survives tracing, and its modules are quantized."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.capture.hooks import Recorder, recording
from profiler.errors import ConfigError, PrepareError, UnsupportedOpError
from profiler.quant import (
    DeQuantStub,
    FakeQuantState,
    QuantStub,
    check_model,
    compile_model,
    convert_fx,
    default_calib_8bit_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
    fuse_fx,
    load_compiled,
    prepare_qat_fx,
    set_fake_quantize,
    wrap,
)
from profiler.quant.ops.gemm import FakeQuantGemm, IntegerGemm
from profiler.quant.quantize import quantize
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.stages import FRONT_ENDS, calibrate

QCONFIG = {"": default_calib_8bit_fake_quant_qconfig}


class Refining(nn.Module):
    """A data-dependent method that calls modules, one that does not, and a traced rest."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.refine, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    @wrap()
    def step(self, x: Any) -> Any:
        if float(x.abs().max()) > 0.5:
            x = torch.relu(self.refine(x)) + x
        return x

    @wrap()
    def post(self, x: Tensor) -> Tensor:
        return x if self.training else torch.from_numpy(x.detach().numpy()).sigmoid()

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.norm(self.stem(self.quant(x))))
        return self.post(self.dequant(self.head(self.step(x) + 1.0)))


class WithoutStubs(Refining):
    """The same, with automatic stubs."""

    def __init__(self) -> None:
        super().__init__()
        del self.quant, self.dequant

    def forward(self, x: Tensor) -> Any:
        return self.post(self.head(self.step(torch.relu(self.norm(self.stem(x)))) + 1.0))


def batches(number: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 8, 8, generator=generator) for _ in range(number)]


def op_names(model: nn.Module, x: Tensor) -> list[str]:
    names: list[str] = []
    recorder = Recorder(model, lambda call: names.append(call.name))
    with torch.no_grad(), recording(recorder):
        model(x)
    return names


def close(test: Tensor, reference: Tensor) -> bool:
    error = (test - reference).detach()
    return float(error.square().mean().sqrt()) < 0.05 * float(reference.detach().square().mean().sqrt())


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("net", [Refining, WithoutStubs])
def test_r21_wrapped_method_survives_tracing_and_its_modules_are_replaced(net: type[Refining]) -> None:
    model, data = net().eval(), batches()
    expected = [model(x) for x in data]

    calib = calibrate(prepare_qat_fx(model, QCONFIG), data)
    converted = convert_fx(calib)

    refine = {m for n, m in calib.named_modules() if n.endswith("refine")}
    assert len(refine) == 1
    assert all(isinstance(m, FakeQuantGemm) and m.activation_post_process.is_calibrated for m in refine)
    assert [isinstance(m, IntegerGemm) for n, m in converted.named_modules() if n.endswith("refine")] == [True]
    assert any(effect.op == "refine" and effect.actual == "qint8" for effect in calib.quant_effects)
    assert any(effect.op == "step.add_0" and effect.actual == "qint8" for effect in calib.quant_effects)
    for x, reference in zip(data, expected, strict=True):
        assert close(calib(x), reference)
        assert float((converted(x) - calib(x)).abs().max()) < 1e-2
    set_fake_quantize(calib, FakeQuantState._FLOAT)
    assert torch.allclose(calib(data[0]), expected[0], atol=1e-5)


@pytest.mark.parametrize("front", FRONT_ENDS)
def test_r21_names_of_ops_are_equal_in_all_stages_and_front_ends(front: str) -> None:
    model, data = Refining().eval(), batches()
    prepare, convert = FRONT_ENDS[front]
    calib = prepare(copy.deepcopy(model), data)
    wanted = ["step.abs_0", "step.max_0", "refine", "step.relu_0", "step.add_0", "add_0", "head"]
    for stage in (model, calib, convert(calib)):
        names = op_names(stage, data[0])
        assert [name for name in names if name in wanted] == wanted
        assert "post.sigmoid_0" in names


def test_r21_both_branches_of_wrapped_code_run_after_tracing() -> None:
    model, data = WithoutStubs().eval(), batches()
    with torch.no_grad():
        model.norm.weight.mul_(0.5)
        model.norm.bias.zero_()
    converted = convert_fx(calibrate(prepare_qat_fx(model, QCONFIG), data))
    quiet = torch.zeros(2, 3, 8, 8)
    assert "refine" in op_names(converted, data[0])
    assert "refine" not in op_names(converted, quiet)
    assert close(converted(quiet), model(quiet))


def test_r21_eager_flow_is_not_changed_by_wrap() -> None:
    class Plain(Refining):
        step = Refining.step.__wrapped__  # type: ignore[attr-defined]

    data = batches()
    wrapped = Refining().eval()
    plain = Plain().eval()
    plain.load_state_dict(wrapped.state_dict())
    eager, convert = FRONT_ENDS["eager"]
    results = [convert(eager(net, data))(data[0]) for net in (wrapped, plain)]
    assert torch.equal(*results)


@pytest.mark.parametrize("net", [Refining, WithoutStubs])
def test_r21_recorded_front_end_follows_wrapped_code(net: type[Refining]) -> None:
    model, data = net().eval(), batches()
    stages = quantize(model, data, frontend="record")
    wanted = ["step.abs_0", "step.max_0", "refine", "step.relu_0", "step.add_0", "add_0", "head"]
    for stage in (stages.calib, stages.quantized):
        assert [name for name in op_names(stage, data[0]) if name in wanted] == wanted
    assert isinstance(stages.quantized.refine, IntegerGemm)
    assert {e.op: e.actual for e in stages.effects}["step.add_0"] == "qint8"
    assert close(stages.quantized(data[0]), model(data[0]))


def test_r21_training_flag_reaches_wrapped_code_and_gradients_reach_its_modules() -> None:
    model, data = Refining().train(), batches()
    qat = prepare_qat_fx(model, {"": default_qat_8bit_fake_quant_qconfig})
    qat(data[0]).square().mean().backward()
    (refine,) = {m for n, m in qat.named_modules() if n.endswith("refine")}
    assert float(refine.weight.grad.abs().max()) > 0
    assert qat(data[0]).requires_grad  # `post` gave its input
    qat.eval()
    set_fake_quantize(qat, FakeQuantState.VALIDATION)
    assert not qat(data[0]).requires_grad


def test_r21_checkpoint_and_deep_copy_keep_what_wrapped_code_has() -> None:
    model, data = Refining().eval(), batches()
    calib = calibrate(prepare_qat_fx(model, QCONFIG), data)
    fresh: Any = prepare_qat_fx(model, {"": default_qat_8bit_fake_quant_qconfig})
    fresh.load_state_dict(calib.state_dict())
    fresh.eval()
    set_fake_quantize(fresh, FakeQuantState.VALIDATION)
    assert torch.equal(fresh(data[0]), calib(data[0]))
    copied = copy.deepcopy(calib)
    assert torch.equal(convert_fx(copied)(data[0]), convert_fx(calib)(data[0]))


def test_r21_module_that_traced_and_wrapped_code_share_has_one_scale() -> None:
    class Sharing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        @wrap()
        def again(self, x: Any) -> Any:
            return self.conv(x) if x.shape[0] > 1 else x

        def forward(self, x: Tensor) -> Any:
            return self.again(self.norm(self.conv(x)))

    model, data = Sharing().eval(), [torch.randn(2, 4, 5, 5) for _ in range(3)]
    calib = calibrate(prepare_qat_fx(model, QCONFIG), data)
    assert calib.conv is calib._wrapped_again.conv
    converted = convert_fx(calib)
    assert converted.conv is converted._wrapped_again.conv
    assert isinstance(converted.conv, IntegerGemm)
    assert close(converted(data[0]), model(data[0]))
    assert torch.allclose(fuse_fx(model)(data[0]), model(data[0]), atol=1e-5)


def test_r21_wrapped_class_is_a_leaf_whose_children_are_quantized() -> None:
    @wrap()
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 2, 1)

        def forward(self, x: Any) -> Any:
            return {"low": self.conv(x)} if bool((x > 0).any()) else {"low": x}

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 4, 1), Head()

        def forward(self, x: Tensor) -> Any:
            return self.head(torch.relu(self.stem(x)))["low"]

    model, data = Net().eval(), batches()
    calib = calibrate(prepare_qat_fx(model, QCONFIG), data)
    converted = convert_fx(calib)
    assert isinstance(calib.head.conv, FakeQuantGemm)
    assert isinstance(converted.head.conv, IntegerGemm)
    assert close(converted(data[0]), model(data[0]))
    assert_equals_onnx(converted, data[0])


@wrap()
def clip_scores(x: Tensor, limit: float) -> Tensor:
    return x.clamp_max(limit) if float(x.max()) > limit else x


def test_r21_wrapped_function_gets_and_gives_real_values() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Any:
            return self.last(clip_scores(self.first(x), limit=0.4))

    model, data = Net().eval(), batches()
    calib = calibrate(prepare_qat_fx(model, QCONFIG), data)
    converted = convert_fx(calib)
    assert close(converted(data[0]), model(data[0]))
    assert next(e.reason for e in calib.quant_effects if e.op == "clip_scores").startswith("wrapped code")
    for stage in (model, calib, converted):
        assert "clip_scores.clamp_max_0" in op_names(stage, data[0])


class Skipping(WithoutStubs):
    """Post-processing that no file can hold."""

    @wrap(skip_compile=True)
    def post(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy()).sigmoid()


def test_r21_skip_compile_stays_out_of_the_file_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, data = Skipping().eval(), batches()
    converted = convert_fx(calibrate(prepare_qat_fx(model, QCONFIG), data))
    with caplog.at_level(logging.WARNING):
        assert check_model(converted, data[0]) == 0
    assert "Skipping.post runs in Python only" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert compile_model(converted, data[0], tmp_path / "net.onnx") == 0
    assert caplog.text.count("it stays out of the file, which gives what enters it") == 1
    compiled = load_compiled(tmp_path / "net.onnx")
    assert torch.equal(compiled(data[0]).sigmoid(), converted(data[0]))


def test_r21_result_of_skipped_code_that_is_used_again_is_refused(tmp_path: Path) -> None:
    class Net(Skipping):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x) * 2.0

    data = batches()
    converted = convert_fx(calibrate(prepare_qat_fx(Net().eval(), QCONFIG), data))
    with pytest.raises(UnsupportedOpError, match="post is wrapped with skip_compile=True"):
        compile_model(converted, data[0], tmp_path / "net.onnx")


def test_wrap_refuses_what_is_no_code_and_two_functions_of_one_name() -> None:
    with pytest.raises(ConfigError, match="put @wrap"):
        wrap()(3)
    first, second = wrap()(lambda x: x + 1), wrap()(lambda x: x - 1)

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return first(second(x))

    with pytest.raises(PrepareError, match="two wrapped functions"):
        prepare_qat_fx(Net(), QCONFIG)
