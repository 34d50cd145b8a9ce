"""Ops without an int16 form in a traced graph: what feeds them falls back to int8, and the effects say so."""

from __future__ import annotations

from torch import fx, nn

from profiler.quant.affine import qint16
from profiler.quant.fx.boundaries import Plan, spec_of_node
from profiler.quant.naming import op_name
from profiler.quant.ops.gemm import Gemm
from profiler.quant.ops.registry import Family
from profiler.quant.target import narrowed


def narrow_inputs_of_fused_adds(root: nn.Module, graph: fx.Graph, plan: Plan) -> None:
    """A weighted op fused with an add has no form with int16 input: its producer becomes int8, in the plan."""
    for node in graph.nodes:
        if node.op != "call_module" or str(node.target) not in plan.quantized:
            continue
        module = root.get_submodule(str(node.target))
        producer = _producer(root, node.args[0]) if node.args else None
        if not isinstance(module, Gemm) or not module.epilogue.has_add or producer is None:
            continue
        qconfig = plan.quantized.get(producer)
        if qconfig is not None and qconfig.activation_dtype == qint16 and not qconfig.is_final:
            plan.quantized[producer] = narrowed(qconfig, fused_add_reason(op_name(str(node.target))))


def fused_add_reason(reader: str) -> str:
    """Why the producer of an op that is fused with an add cannot be int16."""
    return (
        f"QC4: it feeds {reader}, which is fused with an add and has no form with int16 input; put an Identity between "
        "that op and its add, or ask for int8 here"
    )


def _producer(root: nn.Module, source: object) -> str | None:
    """Path of the op that made a value; ops that keep the scale are passed through."""
    while isinstance(source, fx.Node) and source.op == "call_module":
        spec = spec_of_node(root, source)
        if spec is None or spec.family is not Family.SCALE_KEEPING:
            return str(source.target)
        source = source.args[0] if source.args else None
    return None
