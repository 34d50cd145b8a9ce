"""Joins a convolution of codes and its requantization into one QLinearConv: the same integers, one kernel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from profiler.quant.deploy.graph import GraphBuilder, constant

_FLOATS = {1: torch.float32, 11: torch.float64}
_INT8 = 3
_INT32_MAX = 2**31 - 1


@dataclass
class _Chain:
    """What was found from a ConvInteger to its int8 codes.

    Attributes:
        nodes: all nodes of the chain, the convolution first.
        bias: integers `[C]` added to the accumulator.
        multiplier: float32 `[C]` or scalar.
        is_relu: the accumulator was cut at 0.
        limit: largest code, or None.
    """

    nodes: list[Any]
    bias: Tensor | None = None
    multiplier: Tensor | None = None
    is_relu: bool = False
    limit: int | None = None


@dataclass
class _Graph:
    builder: GraphBuilder
    constants: dict[str, Tensor]
    outputs: set[str]
    consumers: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))

    def next(self, node: Any) -> Any | None:
        """The only node that reads a node's output, or None."""
        readers = self.consumers[node.output[0]]
        return readers[0] if len(readers) == 1 and node.output[0] not in self.outputs else None

    def operand(self, node: Any, value: str) -> Tensor | None:
        """The known one of a node's two operands, whose other is `value`."""
        others = [name for name in node.input if name != value]
        return self.constants.get(others[0]) if len(others) == 1 else None


def fuse_requantization(builder: GraphBuilder, outputs: set[str], scales: Mapping[str, Tensor]) -> int:
    """Replace `ConvInteger, Cast, Add bias, Max 0, Mul, Round, Clip, Min, Cast` by QLinearConv and Clip.

    ONNX Runtime computes `round(int32 * (x_scale * w_scale / y_scale))` in float32, half to even: the same formula. The
    scales written are those of the model where they give exactly its multiplier, else 1, the multiplier and 1.

    Args:
        builder: the graph; changed in place.
        outputs: values that must stay.
        scales: scale of each value that is known to hold codes.

    Returns:
        How many were joined.
    """
    graph = _Graph(builder, builder.constants(), outputs)
    for node in builder.nodes:
        for name in node.input:
            graph.consumers[name].append(node)
    replaced: dict[int, list[Any]] = {}
    dropped: set[int] = set()
    for node in list(builder.nodes):
        if node.op_type != "ConvInteger":
            continue
        chain = _follow(graph, node)
        weight = graph.constants.get(node.input[1])
        if chain is None or weight is None or not _fits_int32(weight, chain.bias):
            continue
        dropped |= {id(n) for n in chain.nodes}
        replaced[id(chain.nodes[-1])] = _qlinear(builder, chain, weight, scales)
    kept: list[Any] = []
    for node in builder.nodes:
        kept += replaced.get(id(node), [] if id(node) in dropped else [node])
    builder.nodes[:] = kept
    return len(replaced)


def _follow(graph: _Graph, conv: Any) -> _Chain | None:
    chain = _Chain([conv])
    node = graph.next(conv)
    stage = "accumulator"
    while node is not None:
        value = chain.nodes[-1].output[0]
        stage = _step(graph, chain, stage, node, value)
        chain.nodes.append(node)
        if stage == "done":
            return chain
        if not stage:
            return None
        node = graph.next(node)
    return None


def _step(graph: _Graph, chain: _Chain, stage: str, node: Any, value: str) -> str:
    """Stage after a node: "accumulator", "scaled", "rounded", "clipped", "done"; "" where it does not fit."""
    operand = graph.operand(node, value)
    if node.op_type == "Cast":
        to = node.attribute[0].i
        if stage == "clipped":
            return "done" if to == _INT8 else ""
        return stage if to in _FLOATS and stage == "accumulator" else ""
    if stage == "accumulator" and node.op_type == "Add" and chain.bias is None and not chain.is_relu:
        chain.bias = operand
        return stage if operand is not None and torch.equal(operand, operand.round()) else ""
    if stage == "accumulator" and node.op_type == "Max":
        chain.is_relu = True
        return stage if operand is not None and not operand.any() else ""
    if stage == "accumulator" and node.op_type == "Mul":
        chain.multiplier = operand
        is_positive = operand is not None and operand.dtype == torch.float32 and bool((operand > 0).all())
        return "scaled" if is_positive else ""
    if stage == "scaled" and node.op_type == "Round":
        return "rounded"
    if stage == "rounded" and node.op_type == "Clip":
        bounds = [graph.constants.get(name) for name in node.input[1:]]
        return "clipped" if [None if b is None else float(b) for b in bounds] == [-128.0, 127.0] else ""
    if stage == "clipped" and node.op_type == "Min" and operand is not None and operand.numel() == 1:
        chain.limit = None if float(operand) >= 127 else int(operand)
        return stage if chain.limit is None or float(operand) == max(chain.limit, -128) else ""
    return ""


def _fits_int32(weight: Tensor, bias: Tensor | None) -> bool:
    bound = weight.double().abs().reshape(weight.shape[0], -1).sum(1) * 128
    if bias is not None:
        bound = bound + bias.double().reshape(-1).abs()
    return bool((bound <= _INT32_MAX).all())


def _qlinear(builder: GraphBuilder, chain: _Chain, weight: Tensor, scales: Mapping[str, Tensor]) -> list[Any]:
    from onnx import helper

    conv, last = chain.nodes[0], chain.nodes[-1]
    assert chain.multiplier is not None
    count = weight.shape[0]
    multiplier = chain.multiplier.reshape(-1).expand(count).contiguous()
    x_scale, w_scale, y_scale = _scales(multiplier, scales.get(conv.input[0]), scales.get(last.output[0]))
    builder.scope = conv.name.rpartition("/")[0]
    zero = constant(0, torch.int8)
    operands = [constant(x_scale), zero, None, constant(w_scale), constant(torch.zeros(count, dtype=torch.int8))]
    names = [conv.input[0], *[conv.input[1] if v is None else builder.name_of(v) for v in operands]]
    names += [builder.name_of(constant(y_scale)), builder.name_of(zero)]
    if chain.bias is not None:
        names.append(builder.name_of(constant(chain.bias.reshape(-1).expand(count), torch.int32)))
    is_clipped = chain.is_relu or chain.limit is not None
    name = builder.unique(f"{builder.scope}/QLinearConv" if builder.scope else "QLinearConv")
    node = helper.make_node("QLinearConv", names, [name if is_clipped else last.output[0]], name=name)
    node.attribute.extend(conv.attribute)
    if not is_clipped:
        return [node]
    low = builder.name_of(constant(0 if chain.is_relu else -128, torch.int8))
    high = "" if chain.limit is None else builder.name_of(constant(chain.limit, torch.int8))
    clip_name = builder.unique(f"{builder.scope}/Clip" if builder.scope else "Clip")
    clip = helper.make_node("Clip", [name, low, high] if high else [name, low], [last.output[0]], name=clip_name)
    return [node, clip]


def _scales(multiplier: Tensor, x_scale: Tensor | None, y_scale: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Scales of input, weight and output whose float32 quotient is the multiplier, bit for bit."""
    one = torch.ones(())
    if x_scale is None or y_scale is None or x_scale.numel() != 1 or y_scale.numel() != 1:
        return one, multiplier, one
    x_scale, y_scale = x_scale.reshape(()).float(), y_scale.reshape(()).float()
    guess = (multiplier.double() * y_scale.double() / x_scale.double()).float()
    above, below = (torch.nextafter(guess, torch.full_like(guess, end)) for end in (float("inf"), 0.0))
    w_scale = guess
    for candidate in (guess, above, below):
        w_scale = torch.where(x_scale * w_scale / y_scale == multiplier, w_scale, candidate)
    is_exact = torch.equal(x_scale * w_scale / y_scale, multiplier) and bool((w_scale > 0).all())
    return (x_scale, w_scale, y_scale) if is_exact else (one, multiplier, one)
