"""What check_qat_model found, and how it is written as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from profiler.quant.checking.called import CalledCount
from profiler.quant.checking.fusable import FusableGroup
from profiler.quant.checking.graph import GRAPH_HEAD, GraphRow
from profiler.quant.checking.qconfigs import MessageRow, OutputRow, WeightRow
from profiler.quant.text_table import cell_text, grid

SECTIONS = (
    "Fusable modules are listed below:",
    "Each module called times:",
    "input dtype statistics:",
    "output dtype statistics:",
    "Each layer out qconfig:",
    "Weight qconfig:",
    "Please check if these OPs qconfigs are expected.:",
    "Graph:",
)
DTYPES = ("torch.float32", "qint8", "qint16", "torch.float16")
NOT_RUN = "Not known without a run: pass example_inputs."


@dataclass(frozen=True)
class DtypeCount:
    """How many tensors of which dtype the ops of one type took or gave."""

    type_name: str
    counts: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class ModelCheck:
    """What check_qat_model found.

    Attributes:
        has_run: whether the model ran; without a run `fusable`, `called`, `input_dtypes` and `output_dtypes` are
            empty, `outputs` names the modules that quantize their output, in the order of their definition.
        fusable: ops that could be one.
        called: runs of each op module.
        input_dtypes: input tensors by module type and dtype.
        output_dtypes: output tensors by module type and dtype.
        outputs: how each op call's output is quantized.
        weights: how each weight is quantized.
        messages: what deserves a look.
        graph: nodes of the graph, or op calls of the run.
        missed_high_precision: conv and linear ops (and matmul) whose quantized output is read by DeQuantStubs only.
    """

    has_run: bool
    fusable: tuple[FusableGroup, ...]
    called: tuple[CalledCount, ...]
    input_dtypes: tuple[DtypeCount, ...]
    output_dtypes: tuple[DtypeCount, ...]
    outputs: tuple[OutputRow, ...]
    weights: tuple[WeightRow, ...]
    messages: tuple[MessageRow, ...]
    graph: tuple[GraphRow, ...]
    missed_high_precision: tuple[str, ...]

    def text(self) -> str:
        """Content of `model_check_result.txt`: the sections, each with its tables."""
        tables = (
            self._fusable_text(),
            self._called_text(),
            _dtypes_text(self.input_dtypes) if self.has_run else NOT_RUN,
            _dtypes_text(self.output_dtypes) if self.has_run else NOT_RUN,
            self._outputs_text(),
            self._weights_text(),
            grid(("Module Name", "Module Type", "Msg"), [(r.name, r.type_name, r.message) for r in self.messages]),
            self._graph_table(),
        )
        return "\n\n".join(f"{title}\n{table}" for title, table in zip(SECTIONS, tables, strict=True)) + "\n"

    def graph_text(self) -> str:
        """Content of `fx_graph.txt`: the graph alone."""
        return f"{SECTIONS[-1]}\n{self._graph_table()}\n"

    def _fusable_text(self) -> str:
        if not self.has_run:
            return NOT_RUN
        return "\n".join(_group_text(group) for group in self.fusable) or "None were found."

    def _called_text(self) -> str:
        if not self.has_run:
            return NOT_RUN
        aliases = [
            f"{cell_text(r.name)} is the same object as {cell_text(r.alias_of)}" for r in self.called if r.alias_of
        ]
        return "\n".join([grid(("name", "called times"), [(r.name, r.count) for r in self.called]), *aliases])

    def _outputs_text(self) -> str:
        head = ("Module Name", "Module Type", "Input dtype", "out dtype", "ch_axis", "observer")
        rows = [
            (r.name, r.type_name, _several(r.input_dtypes), r.out_dtype, r.ch_axis, r.observer) for r in self.outputs
        ]
        note = [] if self.has_run else ["Without a run: modules that quantize their output, as they are configured."]
        return "\n".join([grid(head, rows), *note])

    def _weights_text(self) -> str:
        head = ("Module Name", "Module Type", "weight dtype", "ch_axis", "observer")
        return grid(head, [(r.name, r.type_name, r.weight_dtype, r.ch_axis, r.observer) for r in self.weights])

    def _graph_table(self) -> str:
        if not self.graph:
            return NOT_RUN
        return grid(GRAPH_HEAD, [(r.opcode, r.name, r.target, r.args, r.kwargs) for r in self.graph])


def count_dtypes(tensors: Iterable[tuple[str, Sequence[str]]]) -> tuple[DtypeCount, ...]:
    """Counts of (module type, dtypes of the tensors of one call), types in order of their first call."""
    counts: dict[str, dict[str, int]] = {}
    for type_name, dtypes in tensors:
        of_type = counts.setdefault(type_name, {})
        for dtype in dtypes:
            of_type[dtype] = of_type.get(dtype, 0) + 1
    return tuple(DtypeCount(name, tuple(found.items())) for name, found in counts.items())


def _dtypes_text(counts: Sequence[DtypeCount]) -> str:
    """The four dtypes that everybody knows, then others that occur, and the totals."""
    found = {dtype for row in counts for dtype, _ in row.counts}
    dtypes = [*DTYPES, *sorted(found - set(DTYPES))]
    numbers = [[dict(row.counts).get(dtype, 0) for dtype in dtypes] for row in counts]
    total = [sum(row[i] for row in numbers) for i in range(len(dtypes))]
    names = [*(row.type_name for row in counts), "total"]
    rows = [(name, *row) for name, row in zip(names, [*numbers, total], strict=True)]
    return grid(("module type", *dtypes), rows)


def _group_text(group: FusableGroup) -> str:
    names = [f"{name}(shared)" if shared else name for name, shared in zip(group.names, group.shared, strict=True)]
    return f"{grid(('name', 'type'), list(zip(names, group.types, strict=True)))}\ncause: {cell_text(group.cause)}"


def _several(dtypes: Sequence[str]) -> str:
    """One dtype bare, several as a list."""
    return dtypes[0] if len(dtypes) == 1 else str(list(dtypes)) if dtypes else ""
