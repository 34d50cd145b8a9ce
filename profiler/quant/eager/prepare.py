"""prepare_qat: swap modules for their fake-quant forms, in eager mode."""

from __future__ import annotations

from typing import Any

from torch import nn

from profiler.quant.eager.boundaries import FLOAT_RESULTS, add_boundary
from profiler.quant.eager.dispatch import create_from_keys, install_hooks
from profiler.quant.eager.fuse import name_fused_groups
from profiler.quant.eager.running import FQN_ATTRIBUTE
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.loading import match_bounds_after_load
from profiler.quant.march import require_march
from profiler.quant.modules import Identity, QuantOp, is_leaf
from profiler.quant.observers import ObserverBase
from profiler.quant.ops.registry import Family, spec_of_module
from profiler.quant.qconfig import QConfig, propagate_qconfig
from profiler.quant.reparametrized import use_plain_weights
from profiler.quant.states import attach_journal, place_fake_quants
from profiler.quant.swap import (
    EFFECTS_ATTRIBUTE,
    QuantEffect,
    copy_model,
    effect_of,
    fake_quant_form,
    leaves,
    require_float_model,
)
from profiler.quant.target import fit_qconfigs_to_target
from profiler.quant.transformer import use_plain_forwards


def prepare_qat(
    model: nn.Module,
    mapping: dict[Any, Any] | None = None,
    inplace: bool = False,
    optimize_graph: bool = False,
    hybrid: bool = False,
    optimize_kwargs: dict[str, Any] | None = None,
) -> nn.Module:
    """Prepare a model for calibration or QAT; qconfigs were set as `qconfig` attributes before.

    A child inherits its parent's qconfig; its own wins; None keeps the subtree in float. Functions such as `+` on
    quantized values get a `_generated_<function>_<k>` module on the first forward. What has no quantized form runs in
    float between automatic boundaries: its quantized inputs become real values, its float results get a scale of their
    own. `quant_effects` names it. The model that comes back is in the QAT state.

    Args:
        model: float model, fused if wanted, with QuantStub and DeQuantStub at its boundaries.
        mapping: `{float class: f(module, qconfig) -> module}` for further classes.
        inplace: change `model` instead of a copy.
        optimize_graph: accepted; scales stay as they are. BERNOULLI takes a cat of operands with one scale only:
            check_model names each that has several, with its scales.
        hybrid: quantized values may enter ops with qconfig None, which see real values then and give plain results;
            without it they must stand behind a DeQuantStub.
        optimize_kwargs: accepted with optimize_graph.

    Returns:
        The prepared model, with `quant_effects` and `quant_journal`.

    Raises:
        ConfigError: no march is set, or a qconfig attribute is no QConfig.
        PrepareError: a qconfig cannot be used for its op.
    """
    require_march()
    if not inplace:
        model = copy_model(model)
    require_float_model(model)
    use_plain_forwards(model)
    use_plain_weights(model)
    name_fused_groups(model)
    propagate_qconfig(model)
    fit_qconfigs_to_target(model)
    effects = _swap_leaves(model, mapping or {}, hybrid)
    _follow(model, "", effects, hybrid)
    place_fake_quants(model)
    attach_journal(model)
    setattr(model, EFFECTS_ATTRIBUTE, effects)
    model.register_load_state_dict_post_hook(match_bounds_after_load)  # type: ignore[no-untyped-call]
    return model


def follow_part(part: nn.Module, path: str, effects: list[QuantEffect]) -> None:
    """Prepare, in place, a part of a traced model whose Python forward stays; modules in it may be prepared already.

    Args:
        part: its modules have their qconfigs.
        path: its path in the model.
        effects: the effects of its ops are added here, those of functions on the first forward.
    """
    effects += _swap_leaves(part, {}, hybrid=False, prefix=path)
    _follow(part, path, effects, hybrid=False)


def _follow(model: nn.Module, path: str, effects: list[QuantEffect], hybrid: bool) -> None:
    """Let the dispatcher follow a model's code, which calls functions; modules that it follows already stay."""
    for name, module in model.named_modules():
        if isinstance(module, (FakeQuantize, ObserverBase)) or (path and FQN_ATTRIBUTE in module.__dict__):
            continue
        setattr(module, FQN_ATTRIBUTE, ".".join(filter(None, (path, name))))
        install_hooks(module)
        if not is_leaf(module):  # only code that calls functions gets generated modules
            qconfig = module.__dict__.get("qconfig")
            module.__dict__[FLOAT_RESULTS] = hybrid if qconfig is None else qconfig.activation is None
            module.__dict__[EFFECTS_ATTRIBUTE] = effects
            module._register_load_state_dict_pre_hook(create_from_keys, with_module=True)


def _swap_leaves(model: nn.Module, mapping: dict[Any, Any], hybrid: bool, prefix: str = "") -> list[QuantEffect]:
    done: dict[int, tuple[nn.Module, nn.Module]] = {}
    effects = []
    for parent, attribute, module, path in list(leaves(model, prefix)):
        if any(isinstance(m, FakeQuantize) for m in module.modules()):  # the graph around this part calls it as well
            continue
        qconfig = module.__dict__.get("qconfig")
        if id(module) not in done:
            custom = mapping.get(type(module))
            new = custom(module, qconfig) if custom and qconfig is not None else fake_quant_form(module, qconfig)
            new.__dict__["qconfig"] = qconfig
            done[id(module)] = (new, module)
            effects.append(effect_of(path, new, qconfig))
            if new is module and _needs_boundary(new, qconfig, hybrid):
                add_boundary(new, qconfig)
        parent._modules[attribute] = done[id(module)][0]
    return effects


def _needs_boundary(module: nn.Module, qconfig: QConfig | None, hybrid: bool) -> bool:
    """Whether a float module may get quantized values that its forward cannot compute with."""
    family = getattr(spec_of_module(module), "family", None)
    if qconfig is None:
        return hybrid and family is not Family.STUB and not isinstance(module, FakeQuantize)
    return family is None and is_leaf(module) and not isinstance(module, (QuantOp, Identity))
