"""Weighted functions with the model's own parameters (F.conv2d, F.batch_norm) as the modules that they amount to."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, fx, nn

from profiler.errors import PrepareError
from profiler.quant.ops.batch_norm import BatchNorm

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_CONVS: dict[str, type[nn.Module]] = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}
_TRANSPOSED_CONVS: dict[str, type[nn.Module]] = {
    "conv_transpose1d": nn.ConvTranspose1d,
    "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
}
_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
WEIGHTED_FUNCTIONS = frozenset([*_CONVS, *_TRANSPOSED_CONVS, "linear", "batch_norm"])
_SOURCE = "quant_weight_path"


def weighted_module(root: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module that a function call amounts to, its parameters those of the model; None where there is none.

    Args:
        root: owner of the parameters.
        node: function call with `function` in its meta.
    """
    function = node.meta["function"]
    if function not in WEIGHTED_FUNCTIONS:
        return None
    if function == "batch_norm":
        return _batch_norm(root, {**dict(zip(_NORM, node.args, strict=False)), **node.kwargs})
    names = _TRANSPOSED if function in _TRANSPOSED_CONVS else _CONV if function in _CONVS else _CONV[:3]
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    rest = {name: value for name, value in given.items() if name not in names[:3]}
    weight, bias = _parameter(root, given.get("weight")), _parameter(root, given.get("bias"))
    is_constant = not any(isinstance(value, fx.Node) for value in rest.values())
    if weight is None or not is_constant or (bias is None and given.get("bias") is not None):
        return None
    module: nn.Module = _make(function, weight, has_bias=bias is not None, **rest)
    module.weight = weight
    if bias is not None:
        module.bias = bias
    module.__dict__[_SOURCE] = str(given["weight"].target)
    return module


def require_same_weight(there: nn.Module, module: nn.Module, path: str) -> None:
    """A call site has one module: it must always be called with the same weight.

    Raises:
        PrepareError: it is not.
    """
    known, found = there.__dict__.get(_SOURCE), module.__dict__[_SOURCE]
    if known != found:
        raise PrepareError(
            f"{path}: one call of a function takes the weight {known} and the weight {found} in different runs; give "
            "each weight a module of its own (nn.Conv2d, nn.Linear)"
        )


def _batch_norm(root: nn.Module, given: dict[str, Any]) -> nn.Module | None:
    """The batch norm of a call with running statistics that the model holds."""
    mean, variance = (_tensor(root, given.get(name)) for name in _NORM[1:3])
    affine = [_parameter(root, given.get(name)) for name in _NORM[3:5]]
    is_known = all(value is not None or given.get(name) is None for name, value in zip(_NORM[3:5], affine, strict=True))
    rest = {name: given[name] for name in _NORM[5:] if name in given}
    is_constant = not any(isinstance(value, fx.Node) for value in rest.values())
    if mean is None or variance is None or not (is_known and is_constant) or rest.pop("training", False):
        return None
    module: Any = BatchNorm(len(mean), affine=False, device="meta", **rest)
    module.num_batches_tracked = None
    module.running_mean, module.running_var = mean, variance
    module.weight, module.bias = affine
    module.__dict__[_SOURCE] = str(given["running_mean"].target)
    return cast(nn.Module, module)


def _make(function: str, weight: Tensor, *, has_bias: bool, **rest: Any) -> Any:
    size = tuple(weight.shape)
    if function == "linear":
        return nn.Linear(size[1], size[0], has_bias, device="meta")
    groups = int(rest.get("groups", 1))
    if function in _CONVS:
        made: Any = _CONVS[function]
        return made(size[1] * groups, size[0], size[2:], bias=has_bias, device="meta", **rest)
    made = _TRANSPOSED_CONVS[function]
    return made(size[0], size[1] * groups, size[2:], bias=has_bias, device="meta", **rest)


def _parameter(root: nn.Module, node: Any) -> nn.Parameter | None:
    """The parameter that a node reads; a buffer as one that is not trained."""
    value = _tensor(root, node)
    if value is None or isinstance(value, nn.Parameter):
        return value
    return nn.Parameter(value.detach(), requires_grad=False)


def _tensor(root: nn.Module, node: Any) -> Tensor | None:
    """The float parameter or buffer that a node reads."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value: Any = root
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value if isinstance(value, Tensor) and value.is_floating_point() else None
