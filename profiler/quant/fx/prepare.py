"""prepare_qat_fx and fuse_fx: the front end that traces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import fx, nn

from profiler.errors import ConfigError
from profiler.quant.fx.boundaries import has_quant_stub
from profiler.quant.fx.functions import functions_to_modules
from profiler.quant.fx.fuse import FuseMode, fuse_graph
from profiler.quant.fx.planning import QconfigSource, from_dicts, plan_graph
from profiler.quant.fx.trace import Traced, record_kinds, trace
from profiler.quant.loading import match_bounds_after_load
from profiler.quant.march import require_march
from profiler.quant.modules import type_name
from profiler.quant.naming import op_name
from profiler.quant.reparametrized import use_plain_weights
from profiler.quant.states import attach_journal, place_fake_quants
from profiler.quant.swap import (
    EFFECTS_ATTRIBUTE,
    LEAVES_ATTRIBUTE,
    QuantEffect,
    convert_modules,
    copy_model,
    require_float_model,
)
from profiler.quant.transformer import use_plain_forwards


def fuse_fx(
    model: nn.Module, fuse_custom_config_dict: dict[str, Any] | None = None, fuse_mode: FuseMode = FuseMode.BNAddReLU
) -> fx.GraphModule:
    """Float model with its conv, bn, add, relu groups fused; a copy, traced.

    Raises:
        PrepareError: the forward cannot be traced.
    """
    model = copy_model(model)
    use_plain_forwards(model)
    use_plain_weights(model)
    traced = trace(model)
    functions_to_modules(model, traced.graph)
    if fuse_mode is FuseMode.BNAddReLU:
        fuse_graph(model, traced.graph)
    return _graph_module(model, traced)


def prepare_qat_fx(
    model: nn.Module,
    qconfig_dict: dict[str, Any] | None = None,
    prepare_custom_config_dict: dict[str, Any] | None = None,
    optimize_graph: bool = False,
    hybrid: bool = False,
    hybrid_dict: dict[str, Any] | None = None,
    *,
    example_inputs: Sequence[Any] | None = None,
    high_precision_outputs: bool = False,
    qconfig_setter: QconfigSource | None = None,
) -> fx.GraphModule:
    """Trace, fuse and prepare a model for calibration or QAT.

    Ops without a quantized form, and submodules that cannot be traced, run in float between automatic stubs and are
    named in `quant_effects`. A model without stubs of its own gets them at its inputs and outputs. The device and
    training mode of the input model are kept; the result is in the QAT state.

    Args:
        model: float model; it is copied.
        qconfig_dict: `{"": q, "module_type": [(T, q)], "module_name": {n: q} or [(n, q)]}`; "" < type < name <
            `module.qconfig`.
        prepare_custom_config_dict: may hold `preserved_attributes`, names of attributes to keep.
        optimize_graph: accepted; scales stay as they are. BERNOULLI takes a cat of operands with one scale only:
            check_model names each that has several, with its scales.
        hybrid: accepted; automatic stubs are always there.
        hybrid_dict: `{"module_type": [T], "module_name": [n]}`: these ops run in float, between `x_input_dequant` and
            `x_activation_post_process`; a name that matches nothing is named in the effects.
        example_inputs: positional inputs of one forward; lets the planner tell float from integer tensors, and fixes
            arguments that hold no tensor (None, flags) at these values.
        high_precision_outputs: outputs of weighted ops that only feed DeQuantStubs stay unquantized.
        qconfig_setter: sets the qconfigs instead of the two dicts.

    Raises:
        ConfigError: no march is set, or the qconfig_dict cannot be used.
        PrepareError: the forward cannot be traced, or a qconfig does not fit its op.
    """
    require_march()
    model = copy_model(model)
    require_float_model(model)
    use_plain_forwards(model)
    use_plain_weights(model)
    auto_stubs = not has_quant_stub(model)
    traced = trace(model, example_inputs=None if example_inputs is None else tuple(example_inputs))
    if example_inputs is not None:
        _record_kinds_in_eval(model, traced.graph, tuple(example_inputs))
    _, effects = plan_graph(
        model,
        traced.graph,
        qconfig_setter or from_dicts(qconfig_dict, hybrid_dict),
        auto_stubs=auto_stubs,
        high_precision_outputs=high_precision_outputs,
    )
    effects = [*(effect for effect in effects if effect.op not in traced.untraceable), *_leaf_effects(traced)]
    prepared = _graph_module(model, traced)
    for name in (prepare_custom_config_dict or {}).get("preserved_attributes", ()):
        setattr(prepared, name, getattr(model, name))
    place_fake_quants(prepared)
    attach_journal(prepared)
    setattr(prepared, EFFECTS_ATTRIBUTE, effects)
    for module in prepared.modules():
        if EFFECTS_ATTRIBUTE in module.__dict__:  # wrapped code adds what its functions get on the first forward
            module.__dict__[EFFECTS_ATTRIBUTE] = effects
    setattr(prepared, LEAVES_ATTRIBUTE, tuple(traced.untraceable))
    prepared.register_load_state_dict_post_hook(match_bounds_after_load)  # type: ignore[no-untyped-call]
    return prepared


def convert_fx(
    graph_module: nn.Module,
    inplace: bool = False,
    convert_custom_config_dict: dict[str, Any] | None = None,
    _remove_qconfig: bool = True,
    fast_mode: bool = False,
) -> fx.GraphModule:
    """Integer model of a calibrated or trained fx model in eval; see `convert` for the errors."""
    if not isinstance(graph_module, fx.GraphModule):
        raise ConfigError(
            f"convert_fx got {type_name(graph_module)}, expected the result of prepare_qat_fx; use convert for "
            f"an eager model"
        )
    if not inplace:
        graph_module = cast(fx.GraphModule, copy_model(graph_module))
    convert_modules(graph_module, _remove_qconfig)
    return graph_module


def _leaf_effects(traced: Traced) -> list[QuantEffect]:
    return [QuantEffect(op_name(n), "", "torch.float32", reason) for n, reason in traced.untraceable.items()]


def _record_kinds_in_eval(model: nn.Module, graph: fx.Graph, args: tuple[Any, ...]) -> None:
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            record_kinds(model, graph, args)
    finally:
        for module, training in flags.items():
            module.training = training


def _graph_module(model: nn.Module, traced: Traced) -> fx.GraphModule:
    prepared = fx.GraphModule(model, traced.graph, class_name=type(model).__name__)
    called = _called(prepared)
    prepared.graph.eliminate_dead_code()
    for target in called - _called(prepared):  # nobody reads their results: they would never be calibrated
        prepared.delete_submodule(target)
    for node in prepared.graph.nodes:
        if isinstance(node.type, str):  # from `from __future__ import annotations`; fx cannot pickle such a graph
            node.type = None
    prepared.recompile()
    for path, module in prepared.named_modules():  # containers are new; each takes the flag of the user's
        module.training = model.get_submodule(path).training
    return prepared


def _called(prepared: fx.GraphModule) -> set[str]:
    return {str(node.target) for node in prepared.graph.nodes if node.op == "call_module"}
