"""Writes the code of one random network: classes, attributes and statements, and knows the shape of every value."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

Shape = tuple[int, ...]  # without the batch, which comes first


@dataclass(frozen=True)
class Value:
    """A local variable of the code: its name, shape without the batch, and kind "float", "int" or "bool"."""

    name: str
    shape: Shape
    kind: str = "float"


@dataclass
class Program:
    """The whole text: finished classes and functions, and what is shared between them.

    Args:
        rng: decides everything.
        is_traceable: no statement that symbolic tracing cannot follow.
    """

    rng: random.Random
    is_traceable: bool
    parts: list[str] = field(default_factory=list)
    blocks: dict[str, Shape] = field(default_factory=dict)  # class name: shape it keeps
    helpers: list[str] = field(default_factory=list)
    num_names: int = 0
    is_discrete: bool = False

    def name(self, prefix: str) -> str:
        """A name that nothing else has."""
        self.num_names += 1
        return f"{prefix}{self.num_names}"


Statement = Callable[["Writer", Value], "Value | None"]


@dataclass(frozen=True)
class Rule:
    """One kind of statement: how often, for which ranks (without the batch), whether tracing can follow it."""

    write: Statement
    weight: float
    ranks: tuple[int, ...]
    is_traceable: bool
    keeps_shape: bool


RULES: dict[str, Rule] = {}  # by name: the order in which files were imported does not count


def rule(
    weight: float, ranks: tuple[int, ...] = (1, 2, 3), *, traceable: bool = True, keeps_shape: bool = True
) -> Callable[[Statement], Statement]:
    """Register a kind of statement; it gets a float value and gives a new one, or None where it does not fit."""

    def register(write: Statement) -> Statement:
        RULES[write.__name__] = Rule(write, weight, ranks, traceable, keeps_shape)
        return write

    return register


class Writer:
    """The body of one class: lines of `__init__` and of `forward`.

    Args:
        program: the text that this body is part of.
        depth: how deep blocks of code are nested here.
    """

    def __init__(self, program: Program, depth: int = 0) -> None:
        self.program, self.rng, self.depth = program, program.rng, depth
        self.init: list[str] = []
        self.lines: list[str] = []
        self.values: list[Value] = []
        self.attributes: dict[str, str] = {}
        self.indent = 2

    def emit(self, line: str) -> None:
        """One line of forward."""
        self.lines.append("    " * self.indent + line)

    def let(self, expression: str, shape: Shape, kind: str = "float") -> Value:
        """Assign an expression to a new variable."""
        value = Value(self.program.name("v"), shape, kind)
        self.emit(f"{value.name} = {expression}")
        return value

    def module(self, expression: str) -> str:
        """`self.<name>` of a module; sometimes one that is there already, sometimes under a second name."""
        known = self.attributes.get(expression)
        if known is not None and self.rng.random() < 0.5:
            if self.rng.random() < 0.5:
                return known
            alias = f"self.{self.program.name('alias')}"
            self.init.append(f"{alias} = {known}")
            return alias
        name = f"self.{self.program.name('m')}"
        self.init.append(f"{name} = {expression}")
        self.attributes[expression] = name
        return name

    def parameter(self, expression: str) -> str:
        """`self.<name>` of a parameter or a buffer that holds this tensor."""
        name = self.program.name("p")
        if self.rng.random() < 0.5:
            self.init.append(f"self.{name} = nn.Parameter({expression})")
        else:
            persistent = self.rng.random() < 0.7
            self.init.append(f'self.register_buffer("{name}", {expression}, persistent={persistent})')
        return f"self.{name}"

    def call(self, module: str, x: str) -> str:
        """A call of a module in one of its spellings."""
        is_direct = self.rng.random() < 0.12 and not self.program.is_traceable
        return f"{module}.forward({x})" if is_direct else f"{module}({x})"

    def other(self, x: Value) -> Value | None:
        """Another float value of the same shape, or None."""
        same = [v for v in self.values if v.shape == x.shape and v.kind == "float" and v.name != x.name]
        return self.rng.choice(same) if same else None

    def statement(self, x: Value, *, keeps_shape: bool = False) -> Value:
        """Write one random statement on x; its result is known to later ones."""
        for _ in range(40):
            fitting = [r for _, r in sorted(RULES.items()) if self._fits(r, x, keeps_shape)]
            chosen = self.rng.choices(fitting, [r.weight for r in fitting])[0]
            result = chosen.write(self, x)
            if result is not None:
                self.values.append(result)
                return result
        raise AssertionError(f"no statement fits {x}")

    def _fits(self, rule_: Rule, x: Value, keeps_shape: bool) -> bool:
        if keeps_shape and not rule_.keeps_shape:
            return False
        return len(x.shape) in rule_.ranks and (rule_.is_traceable or not self.program.is_traceable)

    def nested(self, x: Value, count: int) -> Value:
        """Indented statements that keep the shape of x; what they make is unknown outside."""
        known, self.indent, self.depth = list(self.values), self.indent + 1, self.depth + 1
        for _ in range(count):
            x = self.statement(x, keeps_shape=True)
        self.values, self.indent, self.depth = known, self.indent - 1, self.depth - 1
        return x
