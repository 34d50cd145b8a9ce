"""Our exported file in ONNX Runtime: as a model of its own, and code by code beside the converted model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from benchmarks._loaders import Batch
from profiler.quant import QTensor
from profiler.quant.deploy.export import record_model
from profiler.quant.deploy.session import make_session, run_session
from profiler.quant.deploy.structure import bind_inputs, flat_tensors


class RuntimeModel(nn.Module):
    """A converted model that computes in ONNX Runtime: its file is written again for every shape of the inputs."""

    def __init__(self, converted: nn.Module) -> None:
        super().__init__()
        self.converted = [converted]  # in a list: its forward is used to write files only
        self._sessions: dict[Any, Callable[[list[Tensor]], Any]] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the converted model's forward gives, out of ONNX Runtime."""
        tensors = flat_tensors(args, kwargs)
        key = tuple((t.dtype, tuple(t.shape)) for t in tensors)
        if key not in self._sessions:
            self._sessions[key] = self._compiled(args, kwargs)
        return self._sessions[key](tensors)

    def _compiled(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[list[Tensor]], Any]:
        (converted,) = self.converted
        exported = record_model(converted, kwargs or args)
        session = make_session(exported.proto)
        with torch.no_grad():
            leaves, structure = tree_flatten(converted(*args, **kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

        def forward(tensors: list[Tensor]) -> Any:
            results = run_session(session, exported.input_names, tensors, exported.output_names)
            filled = list(leaves)
            for place, result in zip(places, results, strict=True):
                filled[place] = result
            return tree_unflatten(filled, structure)

        return forward


@dataclass(frozen=True)
class CodeComparison:
    """Integer codes of one forward, ours beside those in ONNX Runtime.

    Attributes:
        tensors: how many tensors of codes.
        codes: how many codes in them.
        different: how many differ.
        first: the first op that differs, or "".
    """

    tensors: int
    codes: int
    different: int
    first: str

    def __str__(self) -> str:
        if not self.different:
            return f"all {self.codes:,} codes of {self.tensors} tensors are equal in ONNX Runtime"
        return f"{self.different:,} of {self.codes:,} codes differ in ONNX Runtime, the first at {self.first}"


def compare_codes(converted: nn.Module, batch: Batch) -> CodeComparison:
    """Every tensor of codes that an op gives in one forward, held against ONNX Runtime on the exported file."""
    exported = record_model(converted, batch, mark_ops=True)
    session = make_session(exported.proto)
    tensors = flat_tensors(*bind_inputs(converted, batch))
    marks = {mark.value: mark for mark in exported.marks if mark.value and mark.qdtype}
    results = run_session(session, exported.input_names, tensors, list(marks))
    different, first = 0, ""
    for mark, result in zip(marks.values(), results, strict=True):
        ours = mark.tensor.plain if isinstance(mark.tensor, QTensor) else mark.tensor
        count = ours.numel() if ours.shape != result.shape else int((ours != result).sum())
        if count and not first:
            first = mark.name
        different += count
    return CodeComparison(len(marks), sum(mark.tensor.numel() for mark in marks.values()), different, first)
