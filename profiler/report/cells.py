"""The tables of the page: columns with unit, direction and definition, and rows of text that was rounded here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from profiler.report.numbers import Good, significant

Cell = str | int
"""A text; an index into the page's shared texts; or -1 - index, a reason why there is no value."""

SHOWN, INHERITED, HEALTHY, NOT_COMPARED = "shown", "inherited", "healthy", "not_compared"


@dataclass(frozen=True)
class Column:
    """One column of a page table. `good` says which way is good; `limit` is the value at which a cell is flagged."""

    title: str
    help: str
    unit: str = ""
    good: Good = ""
    limit: float | None = None
    is_number: bool = False
    is_op: bool = False


@dataclass(frozen=True)
class Order:
    """A way to sort the rows, computed here: row numbers in the order to show; None is as they stand."""

    key: str
    label: str
    rows: tuple[int, ...] | None


@dataclass
class PageTable:
    """A table as the page's script takes it.

    `folds` holds for each row whether it is shown or why it is folded; `ops` the op call a row belongs to (-1:
    none); `flags` the cells over a limit, as [row, column].
    """

    columns: tuple[Column, ...]
    rows: list[list[Cell]] = field(default_factory=list)
    folds: list[str] = field(default_factory=list)
    ops: list[int] = field(default_factory=list)
    flags: list[tuple[int, int]] = field(default_factory=list)
    orders: tuple[Order, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Gives the table as data for the page; a fold or op that is the same in all rows is left out."""
        columns = [{key: value for key, value in asdict(column).items() if value} for column in self.columns]
        return {
            "columns": columns,
            "rows": self.rows,
            "folds": {str(row): fold for row, fold in enumerate(self.folds) if fold != SHOWN},
            "ops": self.ops if any(op >= 0 for op in self.ops) else [],
            "flags": self.flags,
            "orders": [asdict(order) for order in self.orders],
        }


@dataclass
class Texts:
    """The texts that many cells of a page share, each stored once."""

    items: list[str] = field(default_factory=list)
    _positions: dict[str, int] = field(default_factory=dict)

    def shared(self, text: str) -> int:
        """Gives the cell of a text that will come again, such as a name or a dtype."""
        if text not in self._positions:
            self._positions[text] = len(self.items)
            self.items.append(text)
        return self._positions[text]

    def missing(self, reason: str) -> int:
        """Gives the cell of a value that is not there, with the reason."""
        return -1 - self.shared(reason)

    def number(self, value: float | None, column: Column, reason: str) -> Cell:
        """Gives the cell of a number, or of the reason why there is none."""
        return self.missing(reason) if value is None else significant(value, 4, column.good)


def exceeds(value: float | None, column: Column) -> bool:
    """Tells whether a value is on the bad side of its column's limit; NaN is, no value is not."""
    if value is None or column.limit is None or not column.good:
        return False
    return not (value >= column.limit if column.good == "up" else value <= column.limit)


def ranked(num_rows: int, rank: Callable[[int], Any]) -> tuple[int, ...]:
    """Gives the row numbers by a rank, stable."""
    return tuple(sorted(range(num_rows), key=rank))


MODEL_ORDER = Order("model", "model order", None)


def plain_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], texts: Texts) -> PageTable:
    """Gives a table of texts only; an empty text shows as a dash."""
    cells: list[list[Cell]] = [[texts.shared(cell) if cell else texts.missing("none") for cell in row] for row in rows]
    return PageTable(tuple(columns), cells, [SHOWN] * len(rows), [-1] * len(rows))
