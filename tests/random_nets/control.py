"""Random control flow: branches and loops that depend on data, early returns, recursion, numbers read from tensors."""

from __future__ import annotations

from tests.random_nets.writer import Value, Writer, rule

CONDITIONS = (
    "{x}.mean() > {t}",
    "{x}.sum() > 0",
    "({x} > 0).float().mean() > 0.5",
    "{x}[0].mean().item() > {t}",
    "float({x}.abs().mean()) > {a}",
    "torch.any({x} > 2)",
    "{x}.max() > {a} * 3",
    "{x}.argmax() % 2 == 0",
    "{x}.shape[0] > 2",
    "{x}.abs().mean() < {x}.std()",
    "bool(({x} < 0).any())",
    "{x}.flatten()[0] > {t}",
)


def condition(w: Writer, x: Value) -> str:
    """A condition on data, noted in PATH by its place."""
    w.program.is_discrete = True
    text = w.rng.choice(CONDITIONS).format(
        x=x.name, t=round(w.rng.uniform(-0.2, 0.2), 2), a=round(w.rng.uniform(0.3, 0.8), 2)
    )
    return f"took({w.program.name('')}, {text})"


@rule(2, traceable=False)
def branch(w: Writer, x: Value) -> Value | None:
    if w.depth > 2:
        return None
    result = Value(w.program.name("v"), x.shape)
    w.emit(f"if {condition(w, x)}:")
    w.emit(f"    {result.name} = {w.nested(x, w.rng.randint(1, 2)).name}")
    if w.rng.random() < 0.3:
        w.emit(f"elif {condition(w, x)}:")
        w.emit(f"    {result.name} = {x.name}")
    w.emit("else:")
    w.emit(f"    {result.name} = {w.nested(x, 1).name}")
    return result


@rule(1.2, traceable=False)
def loop(w: Writer, x: Value) -> Value | None:
    """A loop whose trip count depends on values or on the batch."""
    if w.depth > 1:
        return None
    w.program.is_discrete = True
    count = w.rng.choice(
        [
            f"int({x.name}.abs().mean().item() * 4) % 3 + 1",
            f"{x.name}.shape[0]",
            f"len({x.name})",
            f"1 + int({x.name}.argmax()) % 2",
            f"int(({x.name} > 0).sum()) % 3",
        ]
    )
    result = w.let(x.name + " * 1.0", x.shape)
    k = w.program.name("i")
    w.emit(f"for {k} in range(took({w.program.name('')}, {count})):")
    w.emit(f"    {result.name} = {w.nested(result, w.rng.randint(1, 2)).name}")
    return result


@rule(0.6, traceable=False)
def shrinking(w: Writer, x: Value) -> Value:
    """`while` until the values are small."""
    w.program.is_discrete = True
    result, k = w.let(f"{x.name} * 1.0", x.shape), w.program.name("n")
    w.emit(f"{k} = 0")
    w.emit(f"while took({w.program.name('')}, {result.name}.abs().max() > 2.5) and {k} < 3:")
    w.emit(f"    {result.name} = {result.name} * 0.6")
    w.emit(f"    {k} += 1")
    return result


@rule(1.2, traceable=False)
def number(w: Writer, x: Value) -> Value:
    """A number is read and used in Python arithmetic."""
    form = w.rng.choice(
        [
            "{x} * min(1.0, {x}.abs().max().item())",
            "{x} + float({x}.mean())",
            "{x} * math.tanh({x}.std().item())",
            "{x} * (0.5 + sum({x}.flatten(1).mean(1).tolist()) * 0.01)",
            "{x} / max(1, {x}.shape[0] - 1)",
            "{x} * float(np.abs({x}.detach().numpy()).mean())",
            "{x} * (1 + {x}.size(0) % 2)",
            "{x} * 2 if {x}.dim() == 9 else {x} * 0.5",
            "{x} * torch.tensor({x}[0].mean().item() + 1)",
            "{x} * {x}.flatten(1)[:, :1].sigmoid().mean().item()",
        ]
    )
    return w.let(form.format(x=x.name), x.shape)


@rule(0.8, traceable=False)
def by_row(w: Writer, x: Value) -> Value:
    """Rows of the batch one by one."""
    form = w.rng.choice(
        [
            "torch.stack([row * 0.5 for row in {x}])",
            "torch.cat([{x}[i : i + 1] - 0.1 for i in range({x}.shape[0])])",
            "torch.stack([row.relu() if took({k}, row.mean() > 0) else row for row in {x}])",
            "torch.stack([{x}[i] + i * 0.1 for i in range(len({x}))])",
            "torch.stack(list({x}.unbind(0))[::-1])",
            "{x}[torch.arange({x}.shape[0])]",
            "{x} * torch.linspace(0.5, 1, {x}.shape[0]).view(-1, *[1] * {r})",
        ]
    )
    w.program.is_discrete = True
    return w.let(form.format(x=x.name, k=w.program.name(""), r=len(x.shape)), x.shape)


@rule(0.6, traceable=False)
def picked(w: Writer, x: Value) -> Value:
    """Values picked by a mask: how many there are depends on the data."""
    w.program.is_discrete = True
    some = w.let(w.rng.choice([f"{x.name}[{x.name} > 0]", f"torch.masked_select({x.name}, {x.name} > 0)"]), ())
    return w.let(
        f"{x.name} + ({some.name}.mean() * 0.3 if took({w.program.name('')}, {some.name}.numel() > 0) else 0.0)",
        x.shape,
    )


@rule(0.5)
def statistic(w: Writer, x: Value) -> Value:
    """A module whose result is no tensor."""
    kind = "Size" if w.program.is_traceable else w.rng.choice(["Size", "Mean"])
    return w.let(f"{x.name} * {w.module(f'{kind}()')}({x.name})", x.shape)


@rule(0.5, traceable=False)
def recursion(w: Writer, x: Value) -> Value:
    return w.let(f"{w.module(f'Recursive({x.shape[-1]})')}({x.name})", x.shape)


def early_return(w: Writer, x: Value) -> None:
    """Leave forward here, for some data."""
    w.emit(f"if {condition(w, x)}:")
    w.emit(f"    return {x.name} * 0.5")
