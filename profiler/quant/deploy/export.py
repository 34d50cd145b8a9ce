"""From a model and example inputs to an ONNX graph in which every op can be found by its name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from profiler.errors import ConfigError, UnsupportedOpError
from profiler.quant.deploy.follow import OpFollower, RunningOp, following
from profiler.quant.deploy.fuse import fuse_requantization
from profiler.quant.deploy.graph import GraphBuilder, Value
from profiler.quant.deploy.recorder import Recorder
from profiler.quant.deploy.structure import (
    bind_inputs,
    describe_output,
    explained_inputs,
    flat_tensors,
    input_names,
    map_tensors,
    on_cpu,
)
from profiler.quant.deploy.traced import TracedRun, is_traced_module
from profiler.quant.ops.functional import tensors_in
from profiler.quant.qtensor import QTensor, user_line
from profiler.quant.wrapping import skipping, without_skipped


@dataclass(frozen=True)
class OpMark:
    """A tensor that an op gave: where it is in the graph, and what it was in torch.

    Attributes:
        name: op call, `conv` or `conv(1)`; with several results `split[0]`, `split[1]`.
        op_name: op.
        kind: class path, or `torch.<function>`.
        value: name of the value in the graph.
        tensor: what torch gave: codes or float values.
        qdtype: dtype of codes, or "".
        scale: scale of codes, or None.
        source: line of the user's code.
    """

    name: str
    op_name: str
    kind: str
    value: str
    tensor: Tensor
    qdtype: str
    scale: Tensor | None
    source: str


@dataclass(frozen=True)
class Exported:
    """A recorded model.

    Attributes:
        proto: the `onnx.ModelProto`.
        input_names: names of the graph inputs, in the order of the tensors in the example inputs.
        output_names: names of the graph outputs that are the model's.
        output_spec: JSON form of the output's structure.
        outputs: what torch gave for them.
        marks: every op's results; they are graph outputs as well if `mark_ops` was asked for.
        inputs: copies of the tensors that went into the graph, in the order of their names.
        reads: op and line of every Python value that the run read from a tensor: the path may hold for this input only.
    """

    proto: Any
    input_names: list[str]
    output_names: list[str]
    output_spec: Any
    outputs: list[Tensor]
    marks: list[OpMark]
    inputs: list[Tensor]
    reads: list[str]


def record_model(
    model: nn.Module,
    example_inputs: Any,
    *,
    mark_ops: bool = False,
    layouts: tuple[str, str] = ("NCHW", "NCHW"),
    doc: str = "",
) -> Exported:
    """Run a model once and write down what it computes: the path that it takes for these inputs.

    Args:
        model: any module in eval; its state and flags stay as they are.
        example_inputs: a tensor, a tuple or list of inputs, or a dict by parameter name; copies are moved to the CPU.
        mark_ops: make every op's results graph outputs too.
        layouts: "NCHW" or "NHWC" of the graph's 4-d inputs and outputs; the example inputs are NCHW.
        doc: description stored in the file.

    Raises:
        UnsupportedOpError: an operator without an ONNX form; the message names op, operator and source line.
        ConfigError: example inputs that forward does not take.
    """
    require_onnx()
    recording = _Recording(model)
    args, kwargs = on_cpu(bind_inputs(model, example_inputs))
    if layouts[0] == "NHWC":
        args, kwargs = on_cpu(map_tensors((args, kwargs), lambda t: _permuted(t, (0, 2, 3, 1))))
    tensors = flat_tensors(args, kwargs)
    given = [tensor.clone() for tensor in tensors]  # the model may write to its inputs
    inputs = recording.declare_inputs(input_names(model, args, kwargs), tensors)
    with explained_inputs(model, example_inputs):
        output = recording.run(args, kwargs, layouts)
    return replace(recording.finish(inputs, output, mark_ops, doc), inputs=given)


class _Recording:
    """One run of a model under the recorder."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.builder = GraphBuilder()
        self.follower = OpFollower(model, self._before, self._after)
        self.traced = TracedRun(model, self._after_node) if is_traced_module(model) else None
        self.recorder = Recorder(self.builder, self._scope, self._source)
        self.marks: list[OpMark] = []

    def declare_inputs(self, names: list[str], tensors: list[Tensor]) -> list[Value]:
        inputs = []
        for name, tensor in zip(names, tensors, strict=True):
            value = Value(self.builder.unique(name), tensor.dtype, tuple(tensor.shape))
            self.recorder.values.bind(tensor, value)
            inputs.append(value)
        return inputs

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], layouts: tuple[str, str]) -> Any:
        with torch.no_grad(), self._plain_kernels(), self.recorder, skipping():
            if layouts[0] == "NHWC":
                args, kwargs = map_tensors((args, kwargs), lambda t: _permuted(t, (0, 3, 1, 2)))
            if self.traced is not None:
                output = self.traced(*args, **kwargs)
            else:
                with following(self.follower):
                    output = without_skipped(self.model(*args, **kwargs))
            return map_tensors(output, lambda t: _permuted(t, (0, 2, 3, 1))) if layouts[1] == "NHWC" else output

    @contextmanager
    def _plain_kernels(self) -> Iterator[None]:
        """A recurrent layer in one kernel hides what it computes."""
        was_enabled = torch._C._get_mkldnn_enabled()
        has_recurrent = any(isinstance(module, nn.RNNBase) for module in self.model.modules())
        torch._C._set_mkldnn_enabled(was_enabled and not has_recurrent)
        try:
            yield
        finally:
            torch._C._set_mkldnn_enabled(was_enabled)

    def finish(self, inputs: list[Value], output: Any, mark_ops: bool, doc: str) -> Exported:
        tensors: list[Tensor] = []
        names: list[str] = []
        spec = describe_output(output, tensors, names)
        self.builder.scope = ""
        outputs = []
        for i, (name, tensor) in enumerate(zip(names, tensors, strict=True)):
            plain = tensor.plain if isinstance(tensor, QTensor) else tensor
            value = self.recorder.values.value(plain)
            names[i] = self.builder.unique(name)
            outputs.append(self.builder.identity(value, names[i], tuple(plain.shape)))
            tensors[i] = plain.clone()
        if mark_ops:
            marked = {mark.value: mark.tensor for mark in self.marks}
            outputs += [Value(v, t.dtype, tuple(t.shape)) for v, t in marked.items() if v not in names]
        needed = {value.name for value in outputs}
        scales = {mark.value: mark.scale for mark in self.marks if mark.scale is not None and mark.scale.dim() == 0}
        fuse_requantization(self.builder, needed, scales)
        self.builder.drop_unused(needed)
        proto = self.builder.model(inputs, outputs, doc)
        reads = list(dict.fromkeys(self.recorder.reads))
        return Exported(proto, [v.name for v in inputs], names, spec, tensors, self.marks, [], reads)

    def _scope(self) -> str:
        return self.follower.scope if self.traced is None else self.traced.scope

    def _source(self) -> str:
        return user_line() if self.traced is None else self.traced.source

    def _after_node(self, scope: str, source: str, results: list[Tensor]) -> None:
        """The last result of a module's nodes is the op's."""
        if not scope or not results or not self.recorder.values.is_traced(results[-1]):
            return
        with self.recorder.pause():
            value = self.recorder.values.value(results[-1])
            mark = OpMark(scope, scope, "traced module", value.name, results[-1].clone(), "", None, source)
        if self.marks and self.marks[-1].name == scope:
            self.marks.pop()
        self.marks.append(mark)

    def _before(self, running: RunningOp) -> None:
        return None

    def _after(self, running: RunningOp, result: Any) -> None:
        with self.recorder.pause():
            results = tensors_in(result)
            for i, tensor in enumerate(results):
                name = running.name if len(results) == 1 else f"{running.name}[{i}]"
                self._mark(running, name, tensor)

    def _mark(self, running: RunningOp, name: str, tensor: Tensor) -> None:
        is_codes = isinstance(tensor, QTensor)
        plain = tensor.plain if isinstance(tensor, QTensor) else tensor
        if not self.recorder.values.is_traced(plain):
            return
        try:
            value = self.recorder.values.value(plain)
        except UnsupportedOpError:  # a result without an ONNX form, such as a pool's indices: an error where it is used
            return
        mark = OpMark(
            name=name,
            op_name=running.op_name,
            kind=running.kind,
            value=value.name,
            tensor=plain.clone(),
            qdtype=tensor.qdtype if isinstance(tensor, QTensor) else "",
            scale=tensor.scale.detach().clone() if is_codes else None,  # type: ignore[attr-defined]
            source=running.source,
        )
        self.marks.append(mark if value.name else replace(mark, value=""))


def _permuted(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    return tensor.permute(order).contiguous() if tensor.dim() == len(order) else tensor


def require_onnx() -> None:
    """Check that the optional packages are there.

    Raises:
        ConfigError: onnx or onnxruntime is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{error}; ONNX export needs: pip install quant-profiler[deploy]") from error
