"""fuse_modules and fuse_known_modules: fold conv, bn, add and relu into one module, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import nn

from profiler.errors import PrepareError
from profiler.quant.modules import Identity
from profiler.quant.ops.batch_norm import BatchNorm
from profiler.quant.ops.epilogue import Epilogue
from profiler.quant.ops.float_functional import FloatFunctional
from profiler.quant.ops.fusing import fuse_gemm
from profiler.quant.ops.gemm import FusedGemm
from profiler.quant.ops.registry import spec_of_class
from profiler.quant.swap import copy_model

_ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.ReLU6: "relu6"}


class FusionGroup:
    """Shared by the fused module and the identities that its group left behind."""


def fused_class(module: nn.Module) -> type[FusedGemm] | None:
    """Fused class of a weighted float module, or None where it cannot start a group.

    A fused module that already adds or activates ends its group: what follows must not move before that.
    """
    if isinstance(module, FusedGemm):
        return type(module) if module.epilogue == Epilogue() else None
    spec = spec_of_class(type(module))
    return cast("type[FusedGemm]", spec.fused) if spec is not None and spec.fused is not None else None


def is_norm_of(norm: nn.Module, cls: type[FusedGemm]) -> bool:
    """Whether a batch norm can be folded into a fused class."""
    spec = spec_of_class(cls)
    is_norm = spec is not None and type(norm) in (*spec.norms, BatchNorm)
    return is_norm and getattr(norm, "running_mean", None) is not None


def activation_name(module: nn.Module) -> str:
    """Name of an activation that can be fused ("relu", "relu6"), or "" for any other module."""
    return _ACTIVATIONS.get(type(module), "")


def fuse_known_modules(
    mod_list: Sequence[nn.Module], is_qat: bool = False, additional_fuser_method_mapping: dict[Any, Any] | None = None
) -> list[nn.Module]:
    """Fuse one group, in train mode too (running statistics are folded, or with QATMode.WithBN kept live).

    Args:
        mod_list: conv, transposed conv or linear, then optionally a batch norm, a FloatFunctional (add), a ReLU or
            ReLU6.
        is_qat: accepted for compatibility; makes no difference.
        additional_fuser_method_mapping: `{(type, ...): f(is_qat, *modules) -> module}` for further groups.

    Returns:
        As many modules: the fused one at the first place (at the add where there is one), Identity at the others.

    Raises:
        PrepareError: the group is no known pattern; the message lists the patterns.
    """
    custom = (additional_fuser_method_mapping or {}).get(tuple(type(m) for m in mod_list))
    if custom is not None:
        return [custom(is_qat, *mod_list), *(Identity() for _ in mod_list[1:])]
    cls = fused_class(mod_list[0])
    rest = list(mod_list[1:])
    norm = rest.pop(0) if rest and cls is not None and is_norm_of(rest[0], cls) else None
    has_add = bool(rest) and isinstance(rest[0], FloatFunctional)
    if has_add:
        rest.pop(0)
    activation = activation_name(rest.pop(0)) if rest else ""
    if cls is None or rest or (not activation and norm is None and not has_add):
        kinds = ", ".join(type(m).__name__ for m in mod_list)
        raise PrepareError(
            f"cannot fuse ({kinds}); known patterns: Conv1d, Conv2d, Conv3d, ConvTranspose or Linear, then any of "
            "BatchNorm, FloatFunctional (add), ReLU or ReLU6, in this order"
        )
    fused = fuse_gemm(cls, mod_list[0], norm, Epilogue(has_add, activation), ())
    return _place(fused, mod_list, has_add)


def fuse_modules(
    model: nn.Module,
    modules_to_fuse: Sequence[str] | Sequence[Sequence[str]],
    inplace: bool = False,
    fuser_func: Callable[..., Any] = fuse_known_modules,
    fuse_custom_config_dict: dict[str, Any] | None = None,
) -> nn.Module:
    """Fuse groups of modules of `model`, given by their paths.

    Args:
        model: the module that the paths start from.
        modules_to_fuse: one list of paths, or several.
        inplace: change `model` instead of a copy.
        fuser_func: `f(modules, is_qat, mapping) -> modules`, of equal length.
        fuse_custom_config_dict: may hold `additional_fuser_method_mapping`.

    Raises:
        PrepareError: a path does not exist, or a group is no known pattern.
    """
    if not inplace:
        model = copy_model(model)
    groups = [modules_to_fuse] if modules_to_fuse and isinstance(modules_to_fuse[0], str) else modules_to_fuse
    mapping = (fuse_custom_config_dict or {}).get("additional_fuser_method_mapping")
    for names in groups:
        paths = cast(Sequence[str], names)
        modules = [_submodule(model, path) for path in paths]
        for path, new in zip(paths, fuser_func(modules, model.training, mapping), strict=True):
            parent, _, attribute = path.rpartition(".")
            setattr(model.get_submodule(parent), attribute, new)
    return model


def name_fused_groups(model: nn.Module) -> None:
    """Write into every fused module the paths of its group, seen from `model`."""
    groups: dict[int, list[tuple[int, str]]] = {}
    for name, module in model.named_modules():
        group = module.__dict__.get("fusion_group")
        if group is not None:
            groups.setdefault(id(group), []).append((module.__dict__["fusion_index"], name))
    for module in model.modules():
        group = module.__dict__.get("fusion_group")
        if group is not None and not isinstance(module, Identity):
            module.__dict__["fused_names"] = tuple(name for _, name in sorted(groups[id(group)]))


def _place(fused: nn.Module, mod_list: Sequence[nn.Module], has_add: bool) -> list[nn.Module]:
    is_add = [isinstance(m, FloatFunctional) for m in mod_list]
    position = is_add.index(True) if has_add else 0
    placed = [fused if i == position else Identity() for i in range(len(mod_list))]
    group = FusionGroup()
    for index, module in enumerate(placed):
        module.__dict__["fusion_group"], module.__dict__["fusion_index"] = group, index
    return placed


def _submodule(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        names = ", ".join(name for name, _ in model.named_children())
        raise PrepareError(f"{type(model).__name__} has no module {path!r} to fuse; its children are {names}") from None
