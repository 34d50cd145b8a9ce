"""Frees the batch size of an exported model: by recordings at two sizes, checked in ONNX Runtime at several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from profiler.errors import ConfigError, UnsupportedOpError
from profiler.quant.deploy.batch_values import GrowingConstants, Line, Sizes
from profiler.quant.deploy.compare import ConstantPair, PartedError, walk
from profiler.quant.deploy.export import Exported
from profiler.quant.deploy.graph import Value, constant
from profiler.quant.deploy.probe import integer_kernels_are_exact, unsigned_kernels_are_exact
from profiler.quant.deploy.session import make_session, run_session
from profiler.quant.deploy.structure import bind_inputs, flat_tensors, input_names, map_tensors, plain_values
from profiler.quant.deploy.unsigned import with_unsigned_activations

BATCH = "N"
_FLOAT_RELATIVE = 1e-5
_SMALL_BATCH = 4
_LARGE_BATCH = 67
_MAX_ELEMENTS = 2**26  # of all results of a run at the large size


@dataclass(frozen=True)
class BatchInputs:
    """Example inputs at any batch size.

    Attributes:
        example: positional and keyword arguments of the model.
        names: name of each tensor in them.
        free: names of the tensors whose axis 0 is the batch.
        size: batch size of the example.
    """

    example: tuple[tuple[Any, ...], dict[str, Any]]
    names: list[str]
    free: list[str]
    size: int

    @classmethod
    def of(cls, model: nn.Module, example_inputs: Any, wanted: Sequence[str] | None) -> BatchInputs:
        """The tensors named; else the first that has axes, and those as long as it.

        Raises:
            ConfigError: a name that no input has.
            UnsupportedOpError: no input has a batch axis, or they differ in its size.
        """
        args, kwargs = bind_inputs(model, example_inputs)
        tensors = dict(zip(input_names(model, args, kwargs), flat_tensors(args, kwargs), strict=True))
        unknown = [name for name in wanted or () if name not in tensors]
        if unknown:
            raise ConfigError(f"dynamic_batch={list(wanted or ())}: the inputs are {', '.join(tensors)}")
        with_axes = [name for name in (tensors if wanted is None else wanted) if tensors[name].dim()]
        sizes = [tensors[name].shape[0] for name in with_axes]
        if not sizes or (wanted is not None and len(set(sizes)) > 1) or sizes[0] == 0:
            raise UnsupportedOpError(f"no batch axis: the inputs have the sizes {sizes} along axis 0")
        free = [name for name, size in zip(with_axes, sizes, strict=True) if size == sizes[0]]
        return cls((args, kwargs), list(tensors), free, sizes[0])

    def at(self, size: int, is_varied: bool) -> Any:
        """The example with another number of rows; `is_varied`: repeated rows are rolled along the last axis."""
        names = iter(self.names)

        def resized(tensor: Tensor) -> Tensor:
            return _rows(tensor, size, is_varied) if next(names) in self.free else tensor

        args, kwargs = self.example
        positional, by_name = map_tensors([list(args), kwargs], resized)
        return by_name or tuple(positional)


def free_batch(static: Exported, inputs: BatchInputs, record: Callable[[Any], Exported], opt: int) -> Exported:
    """The model with a free batch size.

    Args:
        static: its recording with the example inputs.
        inputs: the example inputs.
        record: records the model with other inputs.
        opt: graph optimisation level of the check in ONNX Runtime.

    Raises:
        UnsupportedOpError: the batch size must stay as it is; the message names the op and the reason.
    """
    is_varied = not static.reads  # with other contents the model might take another path
    runs = {inputs.size: static}

    def run(size: int) -> Exported:
        if size not in runs:
            runs[size] = _at_size(record, inputs.at(size, is_varied), size)
        return runs[size]

    pairs = [(2, inputs.size if inputs.size in (3, _SMALL_BATCH) else 3)]  # small ones are soon recorded
    unused = _unused_sizes(static)
    if unused != pairs[0]:
        pairs.append(unused)  # where a dimension of the model happens to be 2 or 3
    for first, second in pairs:
        try:
            freed = _joined(run(first), run(second), Sizes(first, second), inputs)
            break
        except UnsupportedOpError:
            if (first, second) == pairs[-1]:
                raise
    for size in sorted({1, *runs}):
        _require_same_results(freed, run(size), size, opt)
    for size in _large_sizes(static, inputs.size):  # where the model decides by the size: `if len(x) > 8:`
        if size not in runs:
            recorded = _at_size(record, inputs.at(size, is_varied), size)
            _require_same_results(freed, recorded, size, opt, has_codes=False)
    return freed


def _large_sizes(static: Exported, size: int) -> list[int]:
    """Twice the example's size, and a large one: as many rows as a run of a large model can have in reasonable time."""
    per_row = sum(mark.tensor.numel() for mark in static.marks) // size
    return sorted({2 * size, max(2 * size, min(_LARGE_BATCH, _MAX_ELEMENTS // max(per_row, 1)))})


def _at_size(record: Callable[[Any], Exported], example: Any, size: int) -> Exported:
    try:
        return record(example)
    except Exception as error:
        raise UnsupportedOpError(f"the model does not run at batch size {size}: {error}") from error


def _rows(tensor: Tensor, size: int, is_varied: bool) -> Tensor:
    count = tensor.shape[0]
    rows = tensor[torch.arange(size, device=tensor.device) % count]
    if is_varied and tensor.dim() > 1:
        parts = [part.roll(i, -1) for i, part in enumerate(torch.split(rows, count))]
        return torch.cat(parts)
    return rows


def _unused_sizes(static: Exported) -> tuple[int, int]:
    """Two batch sizes that no dimension of the model has, so that a size which equals them is the batch's."""
    seen = {n for mark in static.marks for n in mark.tensor.shape} | {n for t in static.outputs for n in t.shape}
    for info in static.proto.graph.input:
        seen |= {d.dim_value for d in info.type.tensor_type.shape.dim}
    free = (n for n in range(2, len(seen) + 4) if n not in seen)
    return next(free), next(free)


def _joined(first: Exported, second: Exported, sizes: Sizes, inputs: BatchInputs) -> Exported:
    """The first recording with every constant that grows computed from the input's size."""
    proto = type(first.proto)()
    proto.CopyFrom(first.proto)
    graph = proto.graph
    taken = {name for node in graph.node for name in (node.name, *node.output)} | {i.name for i in graph.initializer}
    source = next(value for value in graph.input if value.name in inputs.free)
    shape = [d.dim_value for d in source.type.tensor_type.shape.dim]
    growing = GrowingConstants(Value(source.name, torch.float32, tuple(shape)), taken)
    nodes = {node.name: node for node in graph.node}
    try:
        for pair in walk(first.proto.graph, second.proto.graph):
            nodes[pair.node.name].input[pair.index] = _operand(first, pair, sizes, growing)
    except PartedError as error:
        raise UnsupportedOpError(
            f"{_located(first, error.op)} runs otherwise at batch size {sizes.second} than at {sizes.first}: {error}"
        ) from error
    _put_in_front(graph, growing)
    _free_shapes(graph, second.proto.graph, sizes, inputs)
    return replace(first, proto=proto)


def _operand(exported: Exported, pair: ConstantPair, sizes: Sizes, growing: GrowingConstants) -> str:
    a, b = pair.first, pair.second
    found = sizes.growing(a, b) if a.dtype == b.dtype and a.dim() == b.dim() else None
    if found is None:
        what = "contents differ" if a.shape == b.shape else f"shape is {list(a.shape)} and {list(b.shape)}"
        raise UnsupportedOpError(
            f"{_located(exported, pair.op)}: a constant of its {pair.node.op_type} depends on the batch size ({what} "
            f"at {sizes.first} and {sizes.second})"
        )
    if pair.node.op_type == "Reshape" and pair.index == 1 and isinstance(found, Line):
        short = found.at_most_one()
        if short is not None:
            return growing.builder.name_of(constant(short))
    return growing.name_of(found, a.dtype)


def _put_in_front(graph: Any, growing: GrowingConstants) -> None:
    """The nodes that compute constants come first; constants that nobody reads any more go."""
    nodes, initializers = [*growing.builder.nodes, *graph.node], [*graph.initializer, *growing.builder.initializers()]
    used = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(i for i in initializers if i.name in used)


def _free_shapes(graph: Any, other: Any, sizes: Sizes, inputs: BatchInputs) -> None:
    for value in graph.input:
        if value.name in inputs.free:
            value.type.tensor_type.shape.dim[0].dim_param = BATCH
    for value, twin in zip(graph.output, other.output, strict=True):
        dims, others = value.type.tensor_type.shape.dim, twin.type.tensor_type.shape.dim
        if len(dims) != len(others):
            raise UnsupportedOpError(f"output {value.name} has another number of dimensions at other batch sizes")
        for dim, other_dim in zip(dims, others, strict=True):
            if dim.dim_value != other_dim.dim_value:
                dim.dim_param = _dim_name(dim.dim_value, other_dim.dim_value, sizes, value.name)


def _dim_name(first: int, second: int, sizes: Sizes, name: str) -> str:
    line = sizes.line(torch.tensor(first), torch.tensor(second))
    if line is None:
        raise UnsupportedOpError(f"output {name} has {first} and {second} rows at {sizes.first} and {sizes.second}")
    rise, start = int(line.rise), int(line.start)
    text = BATCH if rise == 1 else f"{rise}*{BATCH}"
    return text if start == 0 else f"{text}{start:+d}"


def _located(exported: Exported, op: str) -> str:
    """An op with its source line, where it is known."""
    source = next((mark.source for mark in exported.marks if mark.name == op and mark.source), "")
    return f"{op} [{source}]" if source else op


def _require_same_results(freed: Exported, static: Exported, size: int, opt: int, *, has_codes: bool = True) -> None:
    """The free file gives at a batch size what the recording at that size gives in ONNX Runtime, and integers as torch.

    `has_codes` compares the codes inside with torch's too; with float ops before them, ties may part in many rows.

    Raises:
        UnsupportedOpError: it does not run, or something differs.
    """
    _require_same_values(freed.output_spec, static.output_spec, size)
    codes = _int8_marks(freed, static) if has_codes and integer_kernels_are_exact() else {}
    try:
        results = _run(_with_outputs(freed.proto, codes), freed.input_names, static.inputs, opt)
        expected = _run(static.proto, static.input_names, static.inputs, opt)
    except Exception as error:
        raise UnsupportedOpError(f"the file with a free batch size fails at {size}: {error}") from error
    num_outputs = len(expected)
    for name, actual, wanted in zip(freed.output_names, results, expected, strict=False):
        if not _are_close(actual, wanted):
            raise UnsupportedOpError(f"output {name} of a file with a free batch size differs at {size}")
    for (op, wanted), actual in zip(codes.values(), results[num_outputs:], strict=True):
        if not torch.equal(actual, wanted):
            raise UnsupportedOpError(f"{_located(static, op)}: codes of a file with a free batch size differ at {size}")


def _require_same_values(spec: Any, wanted: Any, size: int) -> None:
    """What is no tensor in the output is written into the file, so it must be the same at every size."""
    values, others = plain_values(spec), plain_values(wanted)
    if values.keys() != others.keys():
        raise UnsupportedOpError(f"the output has another structure at batch size {size}")
    for name, value in values.items():
        if repr(value) != repr(others[name]):
            raise UnsupportedOpError(
                f"{name} is a Python {type(value).__name__} that depends on the batch size "
                f"({others[name]!r} at {size}), which a file cannot compute; return it as a tensor or leave it out"
            )


def _run(proto: Any, names: list[str], tensors: list[Tensor], opt: int) -> list[Tensor]:
    """Outputs in ONNX Runtime, by its fast kernels where they are exact, as `load_compiled` runs a file."""
    if unsigned_kernels_are_exact():
        proto = with_unsigned_activations(proto)
    return run_session(make_session(proto, opt), names, tensors)


def _int8_marks(freed: Exported, static: Exported) -> dict[str, tuple[str, Tensor]]:
    """Value in the free file -> op and codes in torch, of each op whose int8 codes can be read there."""
    values = {mark.name: mark.value for mark in freed.marks}
    outputs = {name for node in freed.proto.graph.node for name in node.output} - set(freed.output_names)
    found = {}
    for mark in static.marks:
        value = values.get(mark.name, "")
        if mark.tensor.dtype == torch.int8 and value in outputs:
            found[value] = (mark.name, mark.tensor)
    return found


def _with_outputs(proto: Any, codes: dict[str, Any]) -> Any:
    from onnx import helper

    result = type(proto)()
    result.CopyFrom(proto)
    result.graph.output.extend(helper.make_tensor_value_info(name, 3, None) for name in codes)
    return result


def _are_close(actual: Tensor, wanted: Tensor) -> bool:
    if actual.dtype != wanted.dtype or actual.shape != wanted.shape:
        return False
    if not wanted.is_floating_point():
        return torch.equal(actual, wanted)
    finite = wanted[wanted.isfinite()].abs()
    limit = _FLOAT_RELATIVE * max(float(finite.max()) if finite.numel() else 0.0, 1e-30)
    return torch.allclose(actual, wanted, rtol=0, atol=limit, equal_nan=True)
