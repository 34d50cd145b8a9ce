"""Runs a traced module node by node, so that each operator is known by its module and source line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from profiler.errors import UnsupportedOpError
from profiler.quant.naming import op_name

_LINE = re.compile(r"^(?P<file>.+)\((?P<line>\d+)\): (?P<function>.+)$")
_OWN = ("/torch/", "/profiler/quant/", "<eval_with_key>", "<string>")


class TracedRun:
    """The inlined graph of a traced module, run in Python.

    Args:
        module: what `torch.jit.trace` gave, also after saving and loading.
        on_result: told of op name, source line and results of each operator.
    """

    def __init__(self, module: Any, on_result: Callable[[str, str, list[Tensor]], None]) -> None:
        self.module, self.on_result = module, on_result
        self.scope, self.source = "", ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on tensors, like the module itself.

        Raises:
            UnsupportedOpError: control flow of a scripted module.
        """
        graph = self.module.inlined_graph
        known = dict(zip((v.debugName() for v in graph.inputs()), [self.module, *args, *kwargs.values()], strict=True))
        for node in graph.nodes():
            self.scope, self.source = _scope_of(node), _source_of(node)
            results = self._run(node, [known[v.debugName()] for v in node.inputs()])
            known.update(zip((v.debugName() for v in node.outputs()), results, strict=True))
        outputs = [known[v.debugName()] for v in graph.outputs()]
        self.scope = ""
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _run(self, node: Any, inputs: list[Any]) -> list[Any]:
        kind = node.kind()
        if kind.startswith("aten::"):
            result = _call(node, inputs)
            results = list(result) if node.outputsSize() > 1 else [result]
            self.on_result(self.scope, self.source, [t for t in results if isinstance(t, Tensor)])
            return results
        if kind == "prim::GetAttr":
            return [getattr(inputs[0], node.s("name"))]
        if kind == "prim::Constant":
            return [node.output().toIValue()]
        if kind not in _PRIMITIVES:
            raise UnsupportedOpError(
                f"{self.scope or 'the traced module'}: {kind} at {self.source} cannot be exported; pass the converted "
                "model itself, or a module made by torch.jit.trace instead of torch.jit.script"
            )
        return _PRIMITIVES[kind](inputs)


def _call(node: Any, inputs: list[Any]) -> Any:
    """Run an aten operator by its schema."""
    name = node.kind().removeprefix("aten::")
    if node.schema() == "(no schema)":
        return getattr(torch.ops.aten, name)(*inputs)
    schema = torch._C.parse_schema(node.schema())
    overload = getattr(getattr(torch.ops.aten, name), schema.overload_name or "default")
    named = list(zip(schema.arguments, inputs, strict=False))
    args = [value for argument, value in named if not argument.kwarg_only]
    return overload(*args, **{argument.name: value for argument, value in named if argument.kwarg_only})


def _scope_of(node: Any) -> str:
    """Op name of the module that a node ran in: the last part of its scope."""
    last = node.scopeName().rpartition("/")[2]
    return op_name(last.removeprefix("__module.")) if last.startswith("__module.") else ""


def _source_of(node: Any) -> str:
    """The innermost line outside torch and this core."""
    for text in node.sourceRange().splitlines():
        match = _LINE.match(text.strip())
        if match and not any(own in match["file"] for own in _OWN):
            return f"{match['file']}:{match['line']} ({match['function']})"
    return "an unknown line"


def _dict(inputs: list[Any]) -> list[Any]:
    return [dict(zip(inputs[::2], inputs[1::2], strict=True))]


def _each(inputs: list[Any]) -> list[Any]:
    values: Iterator[Any] = iter(inputs[0])
    return list(values)


_PRIMITIVES: dict[str, Callable[[list[Any]], list[Any]]] = {
    "prim::ListConstruct": lambda inputs: [list(inputs)],
    "prim::TupleConstruct": lambda inputs: [tuple(inputs)],
    "prim::DictConstruct": _dict,
    "prim::ListUnpack": _each,
    "prim::TupleUnpack": _each,
    "prim::NumToTensor": lambda inputs: [torch.tensor(inputs[0])],
    "prim::device": lambda inputs: [inputs[0].device],
    "prim::dtype": lambda inputs: [inputs[0].dtype],
}


def is_traced_module(model: nn.Module) -> bool:
    """Whether it came from `torch.jit.trace` (or `torch.jit.load`)."""
    return isinstance(model, torch.jit.ScriptModule)
