"""Layer, group, instance and RMS norm, and normalize: exact integer sums, then float64 square root and division."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.errors import UnsupportedOpError
from profiler.quant.affine import along_axis, quantize
from profiler.quant.ops.exact_sum import exact_sum
from profiler.quant.ops.functional import OutputQuant
from profiler.quant.ops.parameters import FakeQuantWithParameters, with_parameters
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qconfig import QConfig
from profiler.quant.qtensor import QTensor, to_float

_TINY = torch.finfo(torch.float64).tiny


def layer_norm_codes(
    out: OutputQuant,
    input: QTensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> QTensor:
    """Codes of a layer norm.

    Args:
        out: output scale and dtype.
        input: codes `[..., *normalized_shape]`.
        normalized_shape: trailing dimensions that are normalised together.
        weight: gain `normalized_shape`, float, or None.
        bias: shift `normalized_shape`, float, or None.
        eps: added to the variance.

    Returns:
        With the exact sums S1 of x_q and S2 of x_q**2 over n codes:
        `round(((n * x_q - S1) / sqrt(n * S2 - S1**2 + n**2 * eps / s_x**2) * weight + bias) / s_y)`, in float64.
    """
    dims = tuple(range(-len(normalized_shape), 0))
    return _affine_codes(out, _centred(input, input.plain, dims, eps), weight, bias)


def group_norm_codes(
    out: OutputQuant,
    input: QTensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> QTensor:
    """Codes of a group norm of `[N, C, ...]`; weight and bias `[C]`; else as layer_norm_codes."""
    x = input.plain
    y = _centred(input, x.reshape(x.shape[0], num_groups, -1), (-1,), eps).reshape(x.shape)
    return _affine_codes(out, y, _per_channel(weight, x), _per_channel(bias, x))


def instance_norm_codes(
    out: OutputQuant,
    input: QTensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> QTensor:
    """Codes of an instance norm of `[N, C, ...]`, with its own statistics or the running ones `[C]`."""
    x = input.plain
    if use_input_stats or running_mean is None or running_var is None:
        return group_norm_codes(out, input, x.shape[1], weight, bias, eps)
    deviation = torch.sqrt(to_float(running_var).detach().double() + eps)
    mean = to_float(running_mean).detach().double()
    real = x.double() * input.scale.double()
    y = (real - along_axis(mean, x.dim(), 1)) / along_axis(deviation, x.dim(), 1)
    return _affine_codes(out, y, _per_channel(weight, x), _per_channel(bias, x))


def rms_norm_codes(
    out: OutputQuant,
    input: QTensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> QTensor:
    """Codes of an RMS norm: `x_q / sqrt(S2 / n + eps / s_x**2) * weight`; else as layer_norm_codes."""
    x = input.plain.double()
    dims = tuple(range(-len(normalized_shape), 0))
    count = _count(x, dims)
    floor = torch.finfo(torch.float32).eps if eps is None else eps
    mean_square = _sum_of_squares(x, dims, input) / count
    return _affine_codes(out, x / _root(mean_square + floor / _squared_scale(input)), weight, None)


def normalize_codes(out: OutputQuant, input: QTensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> QTensor:
    """Codes of `x / max(norm(x), eps)` along one dimension.

    Raises:
        UnsupportedOpError: p is none of 1, 2, inf.
    """
    x = input.plain.double()
    if p not in (1, 2, float("inf")):
        raise UnsupportedOpError(f"normalize with p={p} has no integer form; use p = 1, 2 or inf, or qconfig = None")
    if p == 2:
        length = torch.sqrt(_sum_of_squares(x, (dim,), input))
    elif p == 1:
        length = exact_sum(x.abs(), (dim,), -input.info.quant_min)
    else:
        length = x.abs().amax(dim, keepdim=True)
    floor = (eps / input.scale.double()).clamp_min(_TINY)
    return out.wrap(quantize(x / torch.maximum(length, floor), out.scale.double(), out.info))


def _centred(input: QTensor, x_q: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """`(x - mean) / sqrt(var + eps)` over `dims`, float64; both sums are exact, each further step rounds once."""
    x = x_q.double()
    count = _count(x, dims)
    total = exact_sum(x, dims, -input.info.quant_min)
    squares = _sum_of_squares(x, dims, input)
    spread = (squares * count - total * total).clamp_min(0.0)
    return (x * count - total) / _root(spread + count * count * eps / _squared_scale(input))


def _sum_of_squares(x: Tensor, dims: tuple[int, ...], input: QTensor) -> Tensor:
    return exact_sum(x * x, dims, input.info.quant_min**2)


def _root(square: Tensor) -> Tensor:
    """Square root of a non-negative float64 tensor, never 0: eps = 0 on a constant row gives 0, not NaN."""
    return torch.sqrt(square.clamp_min(_TINY))


def _squared_scale(input: QTensor) -> Tensor:
    scale = input.scale.double()
    return scale * scale


def _count(x: Tensor, dims: tuple[int, ...]) -> int:
    count = 1
    for dim in dims:
        count *= x.shape[dim]
    return count


def _affine_codes(out: OutputQuant, y: Tensor, weight: Tensor | None, bias: Tensor | None) -> QTensor:
    """Codes of `y * weight + bias`, one rounding."""
    if weight is not None:
        y = y * to_float(weight).detach().double()
    if bias is not None:
        y = y + to_float(bias).detach().double()
    return out.wrap(quantize(y, out.scale.double(), out.info))


def _per_channel(values: Tensor | None, x: Tensor) -> Tensor | None:
    return None if values is None else along_axis(values, x.dim(), 1)


class FakeQuantLayerNorm(FakeQuantWithParameters, nn.LayerNorm):
    """LayerNorm with a fake-quantized output; gain and shift stay float."""

    spec_name = "layer_norm"


class FakeQuantGroupNorm(FakeQuantWithParameters, nn.GroupNorm):
    """GroupNorm with a fake-quantized output; gain and shift stay float."""

    spec_name = "group_norm"


class FakeQuantRMSNorm(FakeQuantWithParameters, nn.RMSNorm):
    """RMSNorm with a fake-quantized output; the gain stays float."""

    spec_name = "rms_norm"


class _FakeQuantInstanceNorm(FakeQuantWithParameters):
    spec_name = "instance_norm"


class FakeQuantInstanceNorm1d(_FakeQuantInstanceNorm, nn.InstanceNorm1d):
    """InstanceNorm1d form."""

    unbatched_dim = 2


class FakeQuantInstanceNorm2d(_FakeQuantInstanceNorm, nn.InstanceNorm2d):
    """InstanceNorm2d form."""

    unbatched_dim = 3


class FakeQuantInstanceNorm3d(_FakeQuantInstanceNorm, nn.InstanceNorm3d):
    """InstanceNorm3d form."""

    unbatched_dim = 4


_FORMS: dict[type[nn.Module], type[FakeQuantWithParameters]] = {
    nn.LayerNorm: FakeQuantLayerNorm, nn.GroupNorm: FakeQuantGroupNorm, nn.RMSNorm: FakeQuantRMSNorm,
    nn.InstanceNorm1d: FakeQuantInstanceNorm1d, nn.InstanceNorm2d: FakeQuantInstanceNorm2d,
    nn.InstanceNorm3d: FakeQuantInstanceNorm3d,
}  # fmt: skip


def _norm(module: nn.Module, qconfig: QConfig) -> nn.Module:
    form = next(form for cls, form in _FORMS.items() if isinstance(module, cls))
    return with_parameters(form, module, qconfig)


def _bind_layer_norm(module: nn.LayerNorm) -> dict[str, Any]:
    return {"normalized_shape": module.normalized_shape, "weight": module.weight, "bias": module.bias,
            "eps": module.eps}  # fmt: skip


def _bind_group_norm(module: nn.GroupNorm) -> dict[str, Any]:
    return {"num_groups": module.num_groups, "weight": module.weight, "bias": module.bias, "eps": module.eps}


def _bind_rms_norm(module: nn.RMSNorm) -> dict[str, Any]:
    return {"normalized_shape": module.normalized_shape, "weight": module.weight, "eps": module.eps}


def _bind_instance_norm(module: Any) -> dict[str, Any]:
    names = ("running_mean", "running_var", "weight", "bias", "eps")
    momentum = 0.0 if module.momentum is None else module.momentum
    use_input_stats = module.training or not module.track_running_stats
    return {**{n: getattr(module, n) for n in names}, "momentum": momentum, "use_input_stats": use_input_stats}


LAYER_NORM = register(
    OpSpec("layer_norm", Family.FUNCTION, functions=("layer_norm",), modules=(nn.LayerNorm,), fake_quant=_norm,
           bind=_bind_layer_norm, float_fn=F.layer_norm, integer_fn=layer_norm_codes,
           plain_arguments=((2, "weight"), (3, "bias")), note="exact integer sums; gain and shift stay float")
)  # fmt: skip
GROUP_NORM = register(
    OpSpec("group_norm", Family.FUNCTION, functions=("group_norm",), modules=(nn.GroupNorm,), fake_quant=_norm,
           bind=_bind_group_norm, float_fn=F.group_norm, integer_fn=group_norm_codes,
           plain_arguments=((2, "weight"), (3, "bias")), note="as layer_norm")
)  # fmt: skip
INSTANCE_NORM = register(
    OpSpec("instance_norm", Family.FUNCTION, functions=("instance_norm",), fake_quant=_norm,
           modules=(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), bind=_bind_instance_norm,
           float_fn=F.instance_norm, integer_fn=instance_norm_codes,
           plain_arguments=((1, "running_mean"), (2, "running_var"), (3, "weight"), (4, "bias")),
           note="own or running statistics; else as layer_norm")
)  # fmt: skip
RMS_NORM = register(
    OpSpec("rms_norm", Family.FUNCTION, functions=("rms_norm",), modules=(nn.RMSNorm,), fake_quant=_norm,
           bind=_bind_rms_norm, float_fn=F.rms_norm, integer_fn=rms_norm_codes,
           plain_arguments=((2, "weight"),), note="as layer_norm")
)  # fmt: skip
NORMALIZE = register(
    OpSpec("normalize", Family.FUNCTION, functions=("normalize",), float_fn=F.normalize, integer_fn=normalize_codes,
           note="F.normalize with p = 1, 2, inf")
)  # fmt: skip
