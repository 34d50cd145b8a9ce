"""The default qconfigs: int8, but int16 for what norms and softmax read."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn

from profiler.quant.fx.qconfigs import apply_qconfig_dict
from profiler.quant.ops.functional import FunctionOp, spec_of_op
from profiler.quant.ops.registry import Family, OpSpec
from profiler.quant.qconfig import (
    QConfig,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_16bit_fake_quant_qconfig,
)
from profiler.quant.swap import QuantEffect

_READERS = ("layer_norm", "rms_norm", "softmax", "log_softmax")
_ARITHMETIC = ("add", "sub", "mul", "div")
_PRODUCTS = ("matmul", "baddbmm", "einsum")
_MOVING = ("dropout", "identity")


def default_qconfigs(model: nn.Module, graph: fx.Graph | None) -> list[QuantEffect]:
    """Int8 with the least squared error for all ops; int16 for what norms and softmax read.

    That is the products and tables in front of them and the sums and scalings between. In transformers they carry the
    residual stream, of which a few channels are tens of times as wide as the rest, and attention scores, of which the
    exponential magnifies every step. What weighted ops read, a norm's or softmax's result, is int8 again.

    Args:
        model: owner of the graph's targets; gets the attributes `qconfig`.
        graph: who reads what; None where nobody knows: all is int8 then.
    """
    effects = apply_qconfig_dict(model, {"": default_calib_8bit_fake_quant_qconfig})
    for module in _streams(model, graph) if graph is not None else ():
        own = module.__dict__.get("qconfig")
        if isinstance(own, QConfig) and own.activation is not None:
            module.__dict__["qconfig"] = default_calib_16bit_fake_quant_qconfig
    return effects


def _streams(model: nn.Module, graph: fx.Graph) -> Iterator[nn.Module]:
    """Modules between the last norm, activation or pool and a norm or softmax that reads their results."""
    open_nodes = [s for n in graph.nodes if _name(model, n) in _READERS for s in n.all_input_nodes[:1]]
    seen: set[fx.Node] = set()
    while open_nodes:
        node = open_nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        spec = _spec(model, node)
        if spec is None:
            continue
        if spec.name in _ARITHMETIC:
            yield model.get_submodule(str(node.target))
            open_nodes += node.all_input_nodes
        elif spec.family is Family.SCALE_KEEPING or spec.name in _MOVING:
            open_nodes += node.all_input_nodes[:1]
        elif spec.family in (Family.GEMM, Family.TABLE) or spec.name in _PRODUCTS:
            yield model.get_submodule(str(node.target))


def _name(model: nn.Module, node: fx.Node) -> str:
    spec = _spec(model, node)
    return "" if spec is None else spec.name


def _spec(model: nn.Module, node: fx.Node) -> OpSpec | None:
    if node.op != "call_module":
        return None
    module = model.get_submodule(str(node.target))
    return spec_of_op(module) if not isinstance(module, FunctionOp) or module.function else None
