"""Prepares a model from records of its runs: it stays as it is written, its ops are swapped for quantized ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from profiler.errors import PrepareError, ProfilerError
from profiler.quant.eager.convert import BEFORE_CONVERT
from profiler.quant.eager.dispatch import DISPATCH_ATTRIBUTE, create_from_keys, install_hooks
from profiler.quant.eager.running import FQN_ATTRIBUTE
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.fx.boundaries import Plan, has_quant_stub
from profiler.quant.fx.planning import QconfigSource, plan_graph
from profiler.quant.loading import match_bounds_after_load
from profiler.quant.march import require_march
from profiler.quant.modules import Identity, has_hooks, is_leaf, take_hooks
from profiler.quant.naming import join
from profiler.quant.ops.functional import FunctionOp, spec_of_op
from profiler.quant.ops.gemm import Gemm
from profiler.quant.ops.registry import Family, spec_of_module
from profiler.quant.record.deferred import DeferredProduct
from profiler.quant.record.hosting import hide_added, own_children
from profiler.quant.record.outside import left_alone, modules_outside
from profiler.quant.record.plan import RunPlan
from profiler.quant.record.recorder import record_runs
from profiler.quant.record.running import (
    PLAN_ATTRIBUTE,
    ROLE_ATTRIBUTE,
    RecordedDispatch,
    finish_forward,
    install,
    stubs_from_keys,
)
from profiler.quant.record.unreached import before_convert
from profiler.quant.reparametrized import use_plain_weights
from profiler.quant.states import attach_journal, place_fake_quants
from profiler.quant.swap import EFFECTS_ATTRIBUTE, QuantEffect, copy_in_eval, copy_model, require_float_model
from profiler.quant.transformer import use_plain_forwards

UNCALLED = "no recorded run called it: it stays in float"
Run = tuple[tuple[Any, ...], dict[str, Any]]


def prepare_recorded(
    model: nn.Module,
    runs: Sequence[Run],
    qconfigs: QconfigSource,
    *,
    high_precision_outputs: bool = False,
) -> nn.Module:
    """Run a model, write down what it does, and give its ops quantizers as the record says.

    The prepared model keeps its Python `forward`, so control flow, item assignment and dicts stay what they are. Ops
    that no recorded run had stay in float and are named in `quant_effects`; functions among them get quantizers if
    they first run while the model observes. A model without stubs of its own is quantized from its inputs to its
    outputs.

    Args:
        model: float model; it is copied.
        runs: arguments of one forward, or of several that may take different paths.
        qconfigs: sets the qconfig of every op.
        high_precision_outputs: outputs of weighted ops that leave the quantized region at once stay unquantized.

    Raises:
        ConfigError: no march is set.
        PrepareError: the model is no float model, or its forward raises on a run.
    """
    _, prepared = record(model, runs, qconfigs, high_precision_outputs=high_precision_outputs)
    return prepared


def record(
    model: nn.Module, runs: Sequence[Run], qconfigs: QconfigSource, *, high_precision_outputs: bool
) -> tuple[fx.Graph, nn.Module]:
    """As `prepare_recorded`; also the planned graph, for those who show it."""
    require_march()
    require_float_model(model)
    graph = _graph_of(model, runs)
    model = copy_model(model)
    use_plain_forwards(model)
    use_plain_weights(model)
    hooked = {path: m for path, m in model.named_modules() if is_leaf(m) and has_hooks(m)}
    own = own_children(model)
    auto_stubs = not has_quant_stub(model)
    with left_alone([] if auto_stubs else modules_outside(model, graph)):
        plan, found = plan_graph(
            model, graph, qconfigs, auto_stubs=auto_stubs, high_precision_outputs=high_precision_outputs
        )
    effects = list(dict.fromkeys(found))  # several runs say the same of an op
    _defer_products(model, graph)
    for path, module in hooked.items():
        if not has_hooks(model.get_submodule(path)):
            take_hooks(model.get_submodule(path), module)
    run_plan = RunPlan.of_graph(graph, plan)
    effects += _uncalled(model, run_plan)
    _drop_float_functions(model, plan)
    hide_added(model, own)
    _follow(model, run_plan, effects)
    place_fake_quants(model)
    attach_journal(model)
    model._register_load_state_dict_pre_hook(stubs_from_keys, with_module=True)  # type: ignore[no-untyped-call]
    model.register_load_state_dict_post_hook(match_bounds_after_load)  # type: ignore[no-untyped-call]
    setattr(model, EFFECTS_ATTRIBUTE, effects)
    return graph, model


def _graph_of(model: nn.Module, runs: Sequence[Run]) -> fx.Graph:
    """The record of runs of a copy, which may change while it runs."""
    scratch = copy_in_eval(model)
    use_plain_forwards(scratch)
    use_plain_weights(scratch)
    try:
        return record_runs(scratch, list(runs))
    except ProfilerError:
        raise
    except Exception as error:
        raise PrepareError(
            f"{type(model).__name__}: its forward raised {type(error).__name__} on the example inputs: {error}; pass "
            "inputs that the float model takes"
        ) from error


def _uncalled(model: nn.Module, run_plan: RunPlan) -> list[QuantEffect]:
    """Ops with a quantized form that no run called; they are known, so that a later run does not name them again."""
    found = []
    for path, module in model.named_modules():
        spec = spec_of_module(module)
        has_form = spec is not None and spec.family in (Family.GEMM, Family.FUNCTION, Family.COMPOSITE, Family.TABLE)
        if has_form and path not in run_plan.recorded and module.__dict__.get("qconfig") is not None:
            run_plan.unrecorded[path] = None
            requested = module.__dict__["qconfig"].activation_dtype
            found.append(QuantEffect(path, requested, "torch.float32", UNCALLED))
    return found


def _defer_products(model: nn.Module, graph: fx.Graph) -> None:
    """Where a weighted op was fused into an add further down, its place hands the input on."""
    for node in graph.nodes:
        place = node.meta.get("deferred")
        if place and isinstance(model.get_submodule(place), Identity):
            _set(model, place, DeferredProduct(node.meta["path"]))


def _drop_float_functions(model: nn.Module, plan: Plan) -> None:
    """Functions that stay as they are need no module, nor do boundaries that the running model finds by itself."""
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if type(module) is FunctionOp or path in plan.dequants:
            parent, _, name = path.rpartition(".")
            model.get_submodule(parent)._modules.pop(name, None)  # modules under two names come twice


def _follow(model: nn.Module, run_plan: RunPlan, effects: list[QuantEffect]) -> None:
    """Install the hooks by which the model's forward is followed."""
    inside = {id(child) for m in model.modules() if is_leaf(m) for child in m.modules() if child is not m}
    for path, module in model.named_modules():
        if isinstance(module, FakeQuantize) or id(module) in inside:
            continue
        module.__dict__[FQN_ATTRIBUTE] = path
        install_hooks(module, own_hooks_inside=not is_leaf(module))
        if is_leaf(module):
            module.__dict__[ROLE_ATTRIBUTE] = _role(module)
            install(module, path)
        else:
            module.__dict__[EFFECTS_ATTRIBUTE] = effects
            module._register_load_state_dict_pre_hook(_late_functions_from_keys, with_module=True)
        if isinstance(module, Gemm):
            module.takes_floats = True
    model.__dict__[PLAN_ATTRIBUTE] = run_plan
    model.__dict__[DISPATCH_ATTRIBUTE] = RecordedDispatch
    model.__dict__[BEFORE_CONVERT] = before_convert
    model.register_forward_hook(finish_forward, prepend=True)


def _late_functions_from_keys(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before loading: make the functions that joined while the model observed, whose keys a checkpoint holds."""
    known = set(module._modules)
    create_from_keys(module, state_dict, prefix)
    for name in module._modules.keys() - known:
        install(module.get_submodule(name), join(module.__dict__[FQN_ATTRIBUTE], name))


def _role(module: nn.Module) -> str:
    """What crosses at an op's boundary: see `running._cross`."""
    if isinstance(module, (Identity, nn.Identity)):
        return "passes"
    if hasattr(module, "to_integer"):
        return "quantized"
    spec = spec_of_op(module)
    families = (Family.SCALE_KEEPING, Family.INDEX, Family.STUB)
    return "keeps scale" if spec is not None and spec.family in families else "float"


def _set(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of another, under all its names."""
    old = model.get_submodule(path)
    module.train(model.training)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = module
