"""Stages of a network, and what ran in them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode

from profiler.capture.assemble import comparison_record
from profiler.capture.hooks import OpCall, Recorder, recording
from profiler.capture.lockstep import PairRun, run_pair
from profiler.capture.stage import Stage, real_values
from profiler.quant import (
    FakeQuantState,
    March,
    convert,
    default_calib_8bit_fake_quant_qconfig,
    prepare_qat,
    prepare_qat_fx,
    set_fake_quantize,
    set_march,
)
from profiler.quant.batches import Batch
from profiler.records import Comparison, LayerRecord

QCONFIG = default_calib_8bit_fake_quant_qconfig


def calibrated(model: nn.Module, front_end: str, *inputs: Tensor) -> nn.Module:
    """Prepared model in VALIDATION, calibrated on each of the inputs."""
    set_march(March.BAYES)
    if front_end == "eager":
        model = copy.deepcopy(model)
        model.qconfig = QCONFIG
        prepared: nn.Module = prepare_qat(model)
    else:
        prepared = prepare_qat_fx(model, {"": QCONFIG}, example_inputs=inputs[:1])
    prepared.eval()
    set_fake_quantize(prepared, FakeQuantState.CALIBRATION)
    with torch.no_grad():
        for x in inputs:
            prepared(x)
    prepared.eval()
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    return prepared


def stages(model: nn.Module, front_end: str, *inputs: Tensor) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Float, calib and converted form."""
    calib = calibrated(model, front_end, *inputs)
    return model, calib, convert(calib)


def record(model: nn.Module, *args: Any, **kwargs: Any) -> list[OpCall]:
    """Every op call of one forward; outputs are copied, in real values."""
    calls: list[OpCall] = []

    def keep(call: OpCall) -> None:
        calls.append(OpCall(**{**vars(call), "outputs": [real_values(t).clone() for t in call.outputs]}))

    with torch.no_grad(), recording(Recorder(model, keep)):
        model(*args, **kwargs)
    return calls


def names(model: nn.Module, *args: Any, **kwargs: Any) -> list[str]:
    return [call.name for call in record(model, *args, **kwargs)]


def own_names(model: nn.Module, *args: Any) -> set[str]:
    """Names of op calls but for the stubs that preparing put in, and fused-away identities."""
    return {
        call.name
        for call in record(model, *args)
        if not call.is_pass_through and not call.name.endswith(("_activation_post_process", "_dequant"))
    }


def pair(reference: nn.Module, test: nn.Module, *inputs: Any, names: tuple[str, str] = ("float", "calib")) -> PairRun:
    batches = [x if isinstance(x, Batch) else Batch((x,)) for x in inputs]
    return run_pair(Stage(names[0], reference), Stage(names[1], test), batches)


def compared(reference: nn.Module, test: nn.Module, *inputs: Any, mode: Any = "FvsQ") -> Comparison:
    stage_names = {"FvsQ": ("float", "calib"), "QvsQ": ("qat", "quantized")}[mode]
    return comparison_record(pair(reference, test, *inputs, names=stage_names), mode)


def row(comparison: Comparison, name: str) -> LayerRecord:
    found = [layer for layer in comparison.layers if layer.name == name]
    assert len(found) == 1, f"{name}: {[layer.name for layer in comparison.layers]}"
    return found[0]


def assert_untouched(model: nn.Module, run: Callable[[], Any]) -> Any:
    """Run something; afterwards the model has no hook, the same parameters bit for bit and the same training flags."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = {name: module.training for name, module in model.named_modules()}
    hooks = num_hooks(model)
    attributes = {name: set(module.__dict__) for name, module in model.named_modules()}
    mode = _get_current_function_mode()
    try:
        return run()
    finally:
        assert {name: module.training for name, module in model.named_modules()} == flags
        assert num_hooks(model) == hooks
        assert {name: set(module.__dict__) for name, module in model.named_modules()} == attributes
        assert _get_current_function_mode() is mode
        after = model.state_dict()
        assert list(after) == list(state)
        for name, tensor in state.items():
            assert torch.equal(after[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name


def num_hooks(model: nn.Module) -> int:
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(m, table)) for m in model.modules() for table in tables)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
