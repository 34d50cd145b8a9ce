"""The coverage table of the documentation, made from the operator records."""

from __future__ import annotations

from collections.abc import Iterable

from profiler.quant.ops.registry import Family, OpSpec, all_specs

_HEAD = """\
# Operators

What runs on integers, made from the operator table of `profiler.quant` (`make docs` writes this page anew; a test keeps
it true). Everything else runs in float between automatic boundaries and is named in `model.quant_effects`, in the
verdict of the page and in `check_model`.

Each operator has a float, a fake-quant and an integer form, and the integer form is what `compile_model` writes as
ONNX: integer products as `QLinearConv`, `ConvInteger` and `MatMulInteger`, non-linear functions as tables, everything
else as exact integer sums and correctly rounded float32 arithmetic on the codes, so that ONNX Runtime computes the same
codes.
"""
_TITLES = {
    Family.GEMM: ("Weighted operators", "int8 weights per output channel, int32 accumulator, own output scale."),
    Family.FUNCTION: ("Functions with their own output scale", "The result is observed and gets a scale."),
    Family.COMPOSITE: ("Composite operators", "Several products and functions inside, each with its own scale."),
    Family.SCALE_KEEPING: ("Scale-keeping operators", "The output has the scale of the input."),
    Family.TABLE: ("Tables", "Rows of a quantized table; the output has the table's scale."),
    Family.INDEX: ("Comparisons and indices", "Results are booleans or indices, plain tensors."),
    Family.STUB: ("Boundaries", "Between float and integers."),
}


def coverage_page() -> str:
    """The page `docs/operators.md` as Markdown: one table for each family, operators by name."""
    parts = [_HEAD]
    for family, (title, text) in _TITLES.items():
        specs = [spec for spec in all_specs() if spec.family is family]
        if specs:
            parts.append(f"\n## {title}\n\n{text}\n\n{_table(specs)}")
    return "".join(parts)


def _table(specs: Iterable[OpSpec]) -> str:
    head = ("Operator", "Functions", "Modules", "Notes")
    rows = [(f"`{s.name}`", _code(s.functions), _code(_module_names(s)), s.note) for s in specs]
    lines = [_line(head), _line("---" for _ in head), *(_line(row) for row in rows)]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _module_names(spec: OpSpec) -> list[str]:
    """Classes that users write; the fused forms are made by fusion."""
    return [cls.__name__ for cls in spec.modules if cls is not spec.fused]
