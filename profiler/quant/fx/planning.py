"""The passes from a graph of ops to a plan: functions to modules, qconfigs, fusion, boundaries, fake-quant forms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import fx, nn

from profiler.quant.fx.boundaries import TAKEN_APART, BoundaryPlanner, Plan, use_high_precision_outputs
from profiler.quant.fx.fallback import narrow_inputs_of_fused_adds
from profiler.quant.fx.functions import functions_to_modules
from profiler.quant.fx.fuse import fuse_graph
from profiler.quant.fx.qconfigs import apply_hybrid_dict, apply_qconfig_dict
from profiler.quant.fx.wrapped import KEPT, prepare_wrapped
from profiler.quant.modules import is_leaf
from profiler.quant.naming import NOT_OPS, join, op_name
from profiler.quant.ops.registry import Family, spec_of_module
from profiler.quant.qconfig import QConfig
from profiler.quant.swap import QuantEffect, effect_of, fake_quant_form
from profiler.quant.switches import add_cast

# Gives every module of a model, generated ones too, its `qconfig` attribute; the graph shows who reads what.
QconfigSource = Callable[[nn.Module, fx.Graph | None], list[QuantEffect]]


def from_dicts(qconfig_dict: dict[str, Any] | None, hybrid_dict: dict[str, Any] | None = None) -> QconfigSource:
    """Qconfigs as `prepare_qat_fx` takes them."""

    def apply(model: nn.Module, graph: fx.Graph | None) -> list[QuantEffect]:
        return [*apply_qconfig_dict(model, qconfig_dict), *apply_hybrid_dict(model, hybrid_dict)]

    return apply


def plan_graph(
    model: nn.Module,
    graph: fx.Graph,
    qconfigs: QconfigSource,
    *,
    auto_stubs: bool,
    high_precision_outputs: bool = False,
) -> tuple[Plan, list[QuantEffect]]:
    """Put the fake-quant forms of a graph's ops into the model, and the stubs between them into model and graph.

    Args:
        model: owner of the graph's targets; changed in place.
        graph: nodes with the facts that the tracer and the recorder note; changed in place.
        qconfigs: sets the qconfig attributes, once functions are modules.
        auto_stubs: the model's inputs count as values to be quantized.
        high_precision_outputs: outputs of weighted ops that only feed DeQuantStubs stay unquantized.

    Returns:
        The plan; and what became of each op and of each entry of the qconfigs.
    """
    names = _second_names(model)
    _leave_taken_apart(model, graph)
    functions_to_modules(model, graph)
    entries = qconfigs(model, graph)
    fuse_graph(model, graph)
    _drop_unread(graph)
    plan = BoundaryPlanner(model, graph, auto_stubs=auto_stubs).run()
    if high_precision_outputs:
        use_high_precision_outputs(model, graph, plan)
    narrow_inputs_of_fused_adds(model, graph, plan)
    _cast_float_ops(model, graph, plan)
    effects = [*_swap(model, plan), *plan.effects, *entries]
    effects += prepare_wrapped(model, graph)
    for parent, name, path in names:
        parent._modules[name] = model.get_submodule(path)
    return plan, effects


def _leave_taken_apart(model: nn.Module, graph: fx.Graph) -> None:
    """A module whose code or parameters others use (`bn.forward(x)`, `F.conv2d(x, conv.weight)`) stays what it is."""
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    for node in graph.nodes:
        if node.op == "get_attr" and all(user.meta.get("function") in NOT_OPS for user in node.users):
            continue  # only a shape or dtype of it is read
        owner = str(node.target).rpartition(".")[0] if node.op == "get_attr" else str(node.meta.get("forward_of"))
        if owner in called:
            model.get_submodule(owner).__dict__.update({"qconfig": None, KEPT: True, TAKEN_APART: True})


def _second_names(model: nn.Module) -> list[tuple[nn.Module, str, str]]:
    """(parent, attribute, path that graphs use) for each further name of an op module."""
    first: dict[int, str] = {}
    found = []
    for parent_path, parent in model.named_modules():
        for name, child in parent._modules.items():
            if child is not None and is_leaf(child):
                path = first.setdefault(id(child), join(parent_path, name))
                if path != join(parent_path, name):
                    found.append((parent, name, path))
    return found


def _drop_unread(graph: fx.Graph) -> None:
    """Drop results that nobody reads from a trace: they run no more. In a recorded model they do."""
    for node in reversed(graph.nodes):
        is_call = node.op == "call_module" or (node.op not in ("placeholder", "output") and not node.is_impure())
        if is_call and not node.users and "record" not in node.meta:
            graph.erase_node(node)


def _cast_float_ops(model: nn.Module, graph: fx.Graph, plan: Plan) -> None:
    """Ops that run in float give the lower float type that their qconfig asks for (FakeCast)."""
    casts = {}
    for target in {str(n.target): None for n in graph.nodes if n.op == "call_module"}:
        module = model.get_submodule(target)
        qconfig = module.__dict__.get("qconfig")
        is_stub = getattr(spec_of_module(module), "family", None) is Family.STUB
        if isinstance(qconfig, QConfig) and qconfig.cast and is_leaf(module) and not is_stub:
            casts[op_name(target)] = qconfig.activation_dtype
            if target not in plan.quantized:
                add_cast(module, qconfig)
    plan.effects = [replace(e, actual=casts[e.op]) if e.op in casts else e for e in plan.effects]


def _swap(model: nn.Module, plan: Plan) -> list[QuantEffect]:
    effects = []
    for target, qconfig in plan.quantized.items():
        parent, _, name = target.rpartition(".")
        old = model.get_submodule(target)
        new = fake_quant_form(old, qconfig)
        new.__dict__["qconfig"] = qconfig
        setattr(model.get_submodule(parent), name, new)
        effects.append(effect_of(target, new, qconfig))
    return effects
