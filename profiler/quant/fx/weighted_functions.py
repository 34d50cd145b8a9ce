"""Weighted functions with the model's own parameters (F.conv2d, F.linear) as the modules that they amount to."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from profiler.errors import PrepareError

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_CONVS: dict[str, type[nn.Module]] = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}
_TRANSPOSED_CONVS: dict[str, type[nn.Module]] = {
    "conv_transpose1d": nn.ConvTranspose1d,
    "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
}
WEIGHTED_FUNCTIONS = frozenset([*_CONVS, *_TRANSPOSED_CONVS, "linear"])
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
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value: Any = root
    for name in str(node.target).split("."):
        value = getattr(value, name)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    return value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach(), requires_grad=False)
