"""set_preserve_qat_mode: chosen ops stay in fake-quant form inside the converted model."""

from __future__ import annotations

import difflib
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from profiler.errors import ConfigError
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.modules import is_leaf
from profiler.quant.naming import op_name
from profiler.quant.qtensor import QTensor
from profiler.quant.states import named_fake_quants

PRESERVE_ATTRIBUTE = "preserve_qat_mode"


def set_preserve_qat_mode(
    model: nn.Module, prefixes: tuple[str, ...] | str = (), types: tuple[type[nn.Module], ...] = (), value: bool = True
) -> None:
    """Choose modules that convert leaves in fake-quant form, to find the op that loses between QAT and integers.

    The same as `module.preserve_qat_mode = True`. On a float model the flag of a fused op is its conv's (or linear's);
    ops that prepare generates from functions exist on the prepared model only.

    Args:
        model: float or prepared model; changed in place.
        prefixes: paths, or op names such as `block.add_0`; what lies below a path is chosen too.
        types: module classes.
        value: False takes the choice back.

    Raises:
        ConfigError: a prefix or type matches nothing.
    """
    wanted: list[Any] = [*((prefixes,) if isinstance(prefixes, str) else prefixes), *types]
    used = set()
    for path, module in model.named_modules():
        matching = [w for w in wanted if _matches(w, path, module)]
        used |= set(matching)
        if matching:
            setattr(module, PRESERVE_ATTRIBUTE, value)
    missing = next((w for w in wanted if w not in used), None)
    if missing is not None:
        name = missing if isinstance(missing, str) else missing.__name__
        near = difflib.get_close_matches(name, _op_names(model), n=3, cutoff=0.0)
        raise ConfigError(f"set_preserve_qat_mode: no module matches {name!r}; the nearest names are {', '.join(near)}")


def _op_names(model: nn.Module) -> list[str]:
    """Names of the ops, without what lies inside of them."""
    names: list[str] = []
    ops: list[str] = []
    for path, module in model.named_modules():
        if is_leaf(module) and not isinstance(module, FakeQuantize) and not path.startswith(tuple(ops)):
            names.append(op_name(path))
            ops.append(f"{path}.")
    return names


def _matches(wanted: Any, path: str, module: nn.Module) -> bool:
    if isinstance(wanted, str):
        return wanted in (path, op_name(path)) or path.startswith(f"{wanted}.")
    return isinstance(module, wanted)


def is_preserved(module: nn.Module) -> bool:
    """Whether convert leaves a fake-quant op as it is."""
    return bool(module.__dict__.get(PRESERVE_ATTRIBUTE))


def preserve(module: nn.Module) -> nn.Module:
    """A fake-quant op for use among integers, in place: its codes become values at its inputs, its results codes."""
    for _, fake_quant in named_fake_quants(module):
        fake_quant.enable_observer(False)
        fake_quant.enable_fake_quant()
    module.eval()
    module.register_forward_pre_hook(_codes_to_values, with_kwargs=True)
    module.register_forward_hook(_values_to_codes, prepend=True)
    return module


def _codes_to_values(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return tree_map(_values_of, args), tree_map(_values_of, kwargs)


def _values_to_codes(module: nn.Module, args: Any, result: Any) -> Any:
    return tree_map(_codes_of, result)


def _values_of(value: Any) -> Any:
    if not isinstance(value, QTensor) or not value.holds_codes:
        return value
    return QTensor.wrap(value.dequantize(), value.scale, value.qdtype, value.ch_axis)


def _codes_of(value: Any) -> Any:
    if not isinstance(value, QTensor) or value.holds_codes:
        return value
    codes: Tensor = value.int_repr()
    return QTensor.wrap(codes, value.scale, value.qdtype, value.ch_axis)
