"""What all quantized forms of modules share: being an op, taking over a float module, wrapping an output."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from profiler.errors import UnsupportedOpError
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.qconfig import QConfig
from profiler.quant.qtensor import QTensor, in_module, to_plain
from profiler.quant.switches import FakeCast

_M = TypeVar("_M", bound=nn.Module)
_CONTAINERS = (
    nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder,
    nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.DataParallel,
)  # fmt: skip


class QuantOp(nn.Module):
    """Marks modules of this core that are one op: nothing inside them is looked at."""


class Identity(nn.Identity):
    """Stands where a module was fused away."""


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one op for tracing and measuring: ours, or torch.nn's own except containers.

    A scripted module is opaque, so it is one op too.
    """
    if isinstance(module, (QuantOp, Identity, FakeCast)):
        return True
    if isinstance(module, _CONTAINERS) or type(module) is nn.Module:
        return False
    source = type(module).__module__
    return source.startswith(("torch.nn.", "torch.ao.nn.", "torch.ao.quantization.stubs", "torch.jit."))


def adopt(cls: type[_M], module: nn.Module) -> _M:
    """A `cls` instance with the parameters, buffers, attributes and flags of `module`, whose class it extends.

    Parameters are shared; the tables of parameters, buffers, modules and hooks are not: the result can be changed
    freely.
    """
    new = cls.__new__(cls)
    new.__dict__ = {
        key: copy.copy(value) if isinstance(value, (dict, set)) else value for key, value in module.__dict__.items()
    }
    new.__dict__.pop("train", None)  # freeze_part's is bound to the module that was frozen
    return new


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has forward hooks, its users' or ours."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def take_hooks(new: nn.Module, old: nn.Module) -> None:
    """Give a module the forward hooks of the one whose place it takes."""
    own: Any = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called", "_forward_hooks_with_kwargs")
    for table in (*own, "_forward_pre_hooks_with_kwargs"):
        new.__dict__[table] = old.__dict__[table].copy()


def make_activation(qconfig: QConfig, module: nn.Module) -> FakeQuantize | None:
    """The activation fake quant of a qconfig on the module's device and in its training mode, or None."""
    if qconfig.activation is None:
        return None
    return place_like(qconfig.activation(), module)


def place_like(fake_quant: FakeQuantize, module: nn.Module) -> FakeQuantize:
    """Move a fake quant to the module's device and training mode."""
    tensor = next(iter(module.parameters()), next(iter(module.buffers()), None))
    if tensor is not None:
        fake_quant.to(tensor.device)
    fake_quant.train(module.training)
    return fake_quant


def quantized_output(y: Tensor, fake_quant: FakeQuantize | None) -> Tensor:
    """Fake-quantize an output and attach its scale; without a fake quant the plain float tensor (high precision)."""
    if fake_quant is None:
        return y
    y = fake_quant(y)
    return QTensor.wrap(
        y, fake_quant.tensor_scale, fake_quant.dtype, fake_quant.ch_axis, is_rounded=fake_quant.is_rounding
    )


def saturated_output(y: Tensor, fake_quant: FakeQuantize | None) -> Tensor:
    """As quantized_output, for functions with poles: +-Inf goes to the end of the range, NaN to 0, both unobserved."""
    finite = torch.isfinite(y)
    if fake_quant is None or bool(finite.all()):
        return quantized_output(y, fake_quant)
    result = quantized_output(y.masked_fill(~finite, 0.0), fake_quant)
    ends = torch.where(y > 0, float(fake_quant.info.quant_max), float(fake_quant.info.quant_min))
    saturated = torch.where(torch.isinf(y), ends * fake_quant.tensor_scale, to_plain(result))
    return result.like(saturated) if isinstance(result, QTensor) else saturated


def require_codes(x: Any, where: str) -> QTensor:
    """The input as integer codes.

    Raises:
        UnsupportedOpError: it is a float tensor.
    """
    if isinstance(x, QTensor) and x.holds_codes:
        return x
    raise UnsupportedOpError(
        f"{where}{in_module()}: a converted op got {type(x).__name__} with float values, expected integer codes; put a "
        "QuantStub before this call. A module that is called both before and behind a QuantStub has one integer form "
        "only: give the call on float values a module of its own, with qconfig = None"
    )


def type_name(module: nn.Module) -> str:
    """Class path as tables print it; fused ops show their fused name."""
    return f"{type(module).__module__}.{class_name(module)}"


def class_name(module: nn.Module) -> str:
    """Class name as `print(model)` shows it."""
    return str(module._get_name())  # type: ignore[no-untyped-call]
