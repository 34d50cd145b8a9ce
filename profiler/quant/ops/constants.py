"""Float constants (parameters and buffers) as operands: each gets a quantizer inside the op that reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from profiler.quant.affine import QInfo, quantize
from profiler.quant.eager.running import FQN_ATTRIBUTE, running_root
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.modules import place_like, quantized_output
from profiler.quant.naming import join
from profiler.quant.observers import MinMaxObserver
from profiler.quant.ops.registry import OpSpec
from profiler.quant.qtensor import QTensor, first_qtensor
from profiler.quant.states import join_state

_PREFIX, _SCALE = "constant_", "_scale"


def with_fake_quant_constants(module: nn.Module, spec: OpSpec, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Fake-quantize the float operands that are constants; each keeps its quantizer as `constant_<k>` of the op.

    Nothing happens where no operand is quantized, or the output has high precision.

    Args:
        module: the op that reads them; the constants get the dtype of its output.
        spec: its operator.
        args: its positional arguments; a constant is a parameter, a buffer of the running model, or a view of one.
        kwargs: its keyword arguments.

    Returns:
        Arguments with QTensors in the constants' places; k counts the tensors among the arguments.
    """
    output = module._modules.get("activation_post_process")
    if not isinstance(output, FakeQuantize) or first_qtensor([args, kwargs]) is None:
        return args, kwargs

    def quantized(operand: Tensor, name: str) -> Tensor:
        fake_quant = module._modules.get(name)
        if fake_quant is None and not is_constant(operand):
            return operand
        if fake_quant is None:
            fake_quant = _add(module, name, output)
            path = join(module.__dict__.get(FQN_ATTRIBUTE, ""), name)
            join_state(fake_quant, running_root() or module, path, module)
        assert isinstance(fake_quant, FakeQuantize)
        if not fake_quant.is_calibrated:
            fake_quant.calibrate_on(operand.detach())
        return quantized_output(operand, fake_quant)

    return _replace_float_operands(spec, args, kwargs, quantized)


def with_integer_constants(module: nn.Module, spec: OpSpec, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Codes in the places of the float operands that were constants when the op was converted."""
    info: QInfo | None = module.__dict__.get("out_info")
    if info is None or not any(name.startswith(_PREFIX) for name in module._buffers):
        return args, kwargs

    def quantized(operand: Tensor, name: str) -> Tensor:
        scale = module._buffers.get(name + _SCALE)
        return operand if scale is None else QTensor.wrap(quantize(operand, scale, info), scale, info.name)

    return _replace_float_operands(spec, args, kwargs, quantized)


def constants_to_scales(module: nn.Module) -> None:
    """Replace the constants' fake quants by buffers `constant_<k>_scale`, in place."""
    for name, child in list(module._modules.items()):
        if name.startswith(_PREFIX) and isinstance(child, FakeQuantize):
            del module._modules[name]
            module.register_buffer(name + _SCALE, child.tensor_scale.detach().clone())


def constants_from_keys(module: nn.Module, state_dict: dict[str, Any], prefix: str) -> None:
    """Before loading: create the constants' quantizers that a checkpoint holds (they appear on the first forward)."""
    output = module._modules.get("activation_post_process")
    names = {key[len(prefix) :].split(".", 1)[0] for key in state_dict if key.startswith(prefix + _PREFIX)}
    for name in sorted(names - module._modules.keys()):
        if isinstance(output, FakeQuantize):
            _add(module, name, output)


def is_tracing() -> bool:
    """Whether torch.jit.trace records this run: shapes are tensors then."""
    return torch._C._get_tracing_state() is not None


def is_number_or_empty(value: Tensor) -> bool:
    """Whether a float tensor needs no scale as an operand: it is 0-d, which is a number, or holds nothing."""
    return value.dim() == 0 or (not is_tracing() and value.numel() == 0)


def _add(module: nn.Module, name: str, output: FakeQuantize) -> FakeQuantize:
    is_simple = output.activation_post_process.power_of_two
    fake_quant = FakeQuantize(observer=MinMaxObserver, dtype=output.dtype, averaging_constant=1, power_of_two=is_simple)
    module.add_module(name, place_like(fake_quant, module))
    return fake_quant


def is_constant(operand: Tensor) -> bool:
    """Whether a tensor is a parameter or a buffer of the running model, or a view of one."""
    owner = operand._base if operand._is_view() else operand
    root = running_root()
    buffers = () if root is None else root.buffers()
    return isinstance(owner, nn.Parameter) or any(owner is buffer for buffer in buffers)


def _replace_float_operands(
    spec: OpSpec, args: Any, kwargs: Any, replace: Callable[[Tensor, str], Tensor]
) -> tuple[Any, Any]:
    """Call `replace(operand, name)` on float tensors, but not on numbers (0-d), empty ones and plain arguments."""
    plain, count = dict(spec.plain_arguments), 0

    def visit(value: Any) -> Any:
        nonlocal count
        if isinstance(value, Tensor):
            count += 1
            if isinstance(value, QTensor) or is_number_or_empty(value) or not value.is_floating_point():
                return value
            return replace(value, f"{_PREFIX}{count - 1}")
        return type(value)(visit(item) for item in value) if type(value) in (tuple, list) else value

    args = tuple(value if i in plain else visit(value) for i, value in enumerate(args))
    return args, {name: value if name in plain.values() else visit(value) for name, value in kwargs.items()}
