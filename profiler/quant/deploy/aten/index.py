"""Reading and writing by index: gather, index, embedding, scatter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from profiler.errors import UnsupportedOpError
from profiler.quant.deploy.emitters import Emission, broadcast, emits, known, shape_of
from profiler.quant.deploy.graph import Value, constant


@emits("index_select.default")
def index_select(g: Emission, x: Value, dim: int, index: Value) -> Value:
    """Rows along a dimension."""
    return g.gather(x, g.reshape(g.cast(index, torch.int64), [-1]), dim)


@emits("embedding.default")
def embedding(g: Emission, weight: Value, indices: Value, *_: Any) -> Value:
    """Rows of a table."""
    return g.gather(weight, g.cast(indices, torch.int64), 0)


@emits("_embedding_bag.default", "_embedding_bag_forward_only.default")
def embedding_bag(
    g: Emission, weight: Value, indices: Value, offsets: Value, scale_grad: bool = False, mode: int = 0, *rest: Any
) -> tuple[Value | None, ...]:
    """Sums or means of rows of a table: a matrix of ones or shares times the rows. Only the first result.

    Raises:
        UnsupportedOpError: the largest values, weights of samples, a padding index, or offsets that are no constants.
    """
    weights, includes_last, padding = (*rest, *(False, None, False, -1)[len(rest) :])[1:]
    if mode == 2 or weights is not None or padding >= 0:
        raise UnsupportedOpError(
            "embedding_bag with mode='max', per_sample_weights or padding_idx has no ONNX form; use nn.Embedding "
            "and a sum"
        )
    bounds, num_rows = known(offsets, "offsets of embedding_bag").to(torch.int64), shape_of(indices)[0]
    ends = bounds[1:] if includes_last else torch.cat([bounds[1:], bounds.new_tensor([num_rows])])
    starts = bounds[: len(ends)]
    places = torch.arange(num_rows)
    shares = ((places >= starts[:, None]) & (places < ends[:, None])).to(weight.dtype)
    if mode == 1:
        shares = shares / (ends - starts).clamp_min(1)[:, None].to(weight.dtype)
    rows = g.gather(weight, g.cast(indices, torch.int64), 0)
    return g.node("MatMul", constant(shares), rows), None, None, None


@emits("gather.default")
def gather(g: Emission, x: Value, dim: int, index: Value, *, sparse_grad: bool = False) -> Value:
    """One element per index along a dimension."""
    source = x
    for axis, (have, want) in enumerate(zip(shape_of(x), shape_of(index), strict=True)):
        if axis != dim % len(shape_of(x)) and have != want:  # ONNX wants equal sizes, torch takes the first ones
            source = g.node("Slice", source, *[constant([n], torch.int64) for n in (0, want, axis, 1)])
    return replace(g.node("GatherElements", source, index, axis=dim), codes=x.codes)


@emits("scatter.src", "scatter.value")
def scatter(g: Emission, x: Value, dim: int, index: Value, source: Any) -> Value:
    """Write one element per index along a dimension."""
    return g.node("ScatterElements", x, index, updates_like(g, x, index, source), axis=dim)


@emits("scatter_add.default")
def scatter_add(g: Emission, x: Value, dim: int, index: Value, source: Value) -> Value:
    """Add one element per index along a dimension."""
    updates = updates_like(g, x, index, source)
    return g.node("ScatterElements", x, index, updates, axis=dim, reduction="add")


@emits("slice_scatter.default", "select_scatter.default")
def slice_scatter(g: Emission, x: Value, source: Value, *args: Any, **kwargs: Any) -> Value:
    """A copy with a part overwritten: the positions come from the operator itself."""
    shape, count = shape_of(x), g.out.numel()
    places = torch.arange(count).reshape(shape)
    written = g.run(places, torch.full(shape_of(source), -1), *args, **kwargs).reshape(-1) < 0
    row = g.reshape(g.cast(source, x.dtype), [-1])
    flat = g.node("ScatterElements", g.reshape(x, [-1]), constant(torch.arange(count)[written]), row, axis=0)
    return g.reshape(flat, shape)


@emits("index.Tensor", "_unsafe_index.Tensor")
def index(g: Emission, x: Value, indices: Sequence[Value | None]) -> Value:
    """Advanced indexing with integer tensors, or with masks that do not depend on the inputs."""
    dims, indices = _integer_indices(indices)
    if len(dims) == 1:
        return g.gather(x, g.cast(indices[0], torch.int64), dims[0])
    rank = len(shape_of(x))
    others = [d for d in range(rank) if d not in dims]
    front = g.transpose(x, [*dims, *others])
    picked = g.node("GatherND", front, _stacked(g, indices))
    num_index = len(broadcast(*[shape_of(i) for i in indices]))
    if dims != list(range(dims[0], dims[0] + len(dims))) or dims[0] == 0:
        return replace(picked, codes=x.codes)
    before = sum(d < dims[0] for d in others)
    order = [*range(num_index, num_index + before), *range(num_index), *range(num_index + before, g.out.dim())]
    return g.transpose(replace(picked, codes=x.codes), order)


@emits("index_put.default", "_unsafe_index_put.default")
def index_put(
    g: Emission, x: Value, indices: Sequence[Value | None], values: Value, accumulate: bool = False, *_: Any
) -> Value:
    """Write by integer tensors (masks: by a choice)."""
    first = indices[0] if indices else None
    if len(indices) == 1 and first is not None and first.dtype == torch.bool and shape_of(values) in ((), (1,)):
        rank = len(shape_of(x)) - len(shape_of(first))
        mask = g.reshape(first, (*shape_of(first), *[1] * rank))
        new = g.binary("Add", x, values, x.dtype) if accumulate else values
        return g.where(mask, new, x, x.dtype)
    dims, indices = _integer_indices(indices)
    shape = shape_of(x)
    others = [d for d in range(len(shape)) if d not in dims]
    order = [*dims, *others]
    picked = broadcast(*[shape_of(i) for i in indices])
    stacked = _stacked(g, indices)
    is_moved = dims != list(range(dims[0], dims[0] + len(dims)))
    before = 0 if is_moved else sum(d < dims[0] for d in others)
    sizes = [shape[d] for d in others]
    full = [*sizes[:before], *picked, *sizes[before:]]
    updates = g.expand(g.cast(values, x.dtype), full)
    places = [*range(before, before + len(picked)), *range(before), *range(before + len(picked), len(full))]
    updates = g.transpose(updates, places)
    attributes = {"reduction": "add"} if accumulate else {}
    written = g.node("ScatterND", g.transpose(x, order), stacked, updates, **attributes)
    back = sorted(range(len(order)), key=order.__getitem__)
    return g.transpose(written, back)


@emits("take.default")
def take(g: Emission, x: Value, index: Value) -> Value:
    """Elements of the flattened tensor."""
    return g.gather(g.reshape(x, [-1]), index, 0)


def updates_like(g: Emission, x: Value, index: Value, source: Any) -> Value:
    """What is written at an index: as large as the index, in the dtype of what is written to."""
    if not isinstance(source, Value):
        return g.expand(constant(source, x.dtype), shape_of(index))
    value = g.cast(source, x.dtype)
    for axis, (have, want) in enumerate(zip(shape_of(source), shape_of(index), strict=True)):
        if have != want:
            value = g.node("Slice", value, *[constant([n], torch.int64) for n in (0, want, axis, 1)])
    return value


def _integer_indices(indices: Sequence[Value | None]) -> tuple[list[int], list[Value]]:
    """Indexed dimensions and their int64 indices; a known mask stands for the positions where it holds."""
    dims: list[int] = []
    values: list[Value] = []
    dim = 0
    for item in indices:
        if item is None:
            dim += 1
        elif item.dtype in (torch.bool, torch.uint8):
            for positions in known(item, "a mask that selects elements").nonzero(as_tuple=True):
                dims.append(dim)
                values.append(constant(positions))
                dim += 1
        else:
            dims.append(dim)
            values.append(item)
            dim += 1
    return dims, values


def _stacked(g: Emission, indices: Sequence[Value]) -> Value:
    """Index tuples `[..., number of indexed dimensions]`."""
    shape = broadcast(*[shape_of(i) for i in indices])
    columns = [
        g.node("Unsqueeze", g.expand(g.cast(i, torch.int64), shape), constant([-1], torch.int64)) for i in indices
    ]
    return g.node("Concat", *columns, axis=-1)
