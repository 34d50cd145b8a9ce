"""Random statements without modules: functions, methods, in-place writes, views, indices, masks, constants."""

from __future__ import annotations

from math import prod

from tests.random_nets.writer import Value, Writer, rule

UNARY = (
    "torch.tanh({x})",
    "torch.sigmoid({x})",
    "F.relu({x})",
    "{x}.relu()",
    "F.gelu({x})",
    "F.silu({x})",
    "{x}.abs()",
    "{x}.clamp(-1.5, 1.5)",
    "torch.exp(-{x}.abs())",
    "torch.sin({x})",
    "F.leaky_relu({x}, 0.1)",
    "F.hardswish({x})",
    "torch.sqrt({x} * {x} + 1)",
    "-{x}",
    "{x} / 2",
    "1 - {x}",
    "0.5 * {x} ** 2",
    "F.softplus({x})",
    "F.elu({x})",
    "torch.clamp({x}, min=-0.5)",
    "F.relu6({x})",
    "{x}.neg()",
    "torch.mul({x}, 0.7)",
    "{x}.sub(0.1)",
    "2 * {x} - 1",
    "torch.softmax({x}, -1)",
    "F.softmax({x}, dim=-1)",
    "{x}.log_softmax(-1)",
    "F.dropout({x}, 0.3, self.training)",
    "torch.softmax({x}.float(), dim=-1).type_as({x})",
    "F.normalize({x}, dim=-1)",
    "{x}.cumsum(-1) * 0.3",
    "F.layer_norm({x}, {x}.shape[-1:])",
    "1.0 / (1.0 + {x}.abs())",
    "torch.erf({x})",
    "F.mish({x})",
    "torch.log({x}.abs() + 1)",
    "{x}.square().add(1).rsqrt()",
    "F.hardtanh({x})",
)
BINARY = (
    "{x} + {y}",
    "{x} - {y}",
    "{x} * torch.sigmoid({y})",
    "torch.maximum({x}, {y})",
    "torch.minimum({x}, {y})",
    "torch.add({x}, {y}, alpha=0.5)",
    "({x} + {y}) * 0.5",
    "torch.where({x} > {y}, {x}, {y})",
    "{x} * torch.tanh({y})",
    "{x} / ({y}.abs() + 1)",
    "torch.sub({x}, {y})",
    "{x}.add({y})",
    "{x}.mul({y}.sigmoid())",
    "sum([{x}, {y}])",
    "torch.lerp({x}, {y}, 0.25)",
    "torch.stack([{x}, {y}]).mean(0)",
    "torch.stack([{x}, {y}], 1).amax(1)",
)
REDUCED = (
    "{x} - {x}.mean(-1, keepdim=True)",
    "{x} - {x}.amax(-1, keepdim=True)",
    "{x} / ({x}.abs().sum(-1, keepdim=True) + 1)",
    "{x} + {x}.mean(dim=1, keepdim=True)",
    "{x} - {x}.max(-1, keepdim=True)[0]",
    "{x} - {x}.min(1, keepdim=True).values",
    "{x} / ({x}.pow(2).mean(-1, keepdim=True) + 0.1).sqrt()",
    "{x} * {x}.mean()",
    "{x} + {x}.std(-1, keepdim=True)",
    "{x} * torch.sigmoid({x}.sum(-1, keepdim=True))",
    "{x} - {x}.mean([1], True)",
)
IN_PLACE = (
    "{x} += {y}",
    "{x} -= {y}",
    "{x} *= 0.5",
    "{x}.mul_(0.7)",
    "{x}.add_({y})",
    "{x}.add_({y}, alpha=0.5)",
    "{x}.clamp_(-1, 1)",
    "{x}.sub_(0.1)",
    "F.relu_({x})",
    "F.relu({x}, inplace=True)",
    "{x}.relu_()",
    "{x}.sigmoid_()",
    "{x} /= 2",
    "{x}.neg_()",
    "{x}.copy_({y})",
    "{x}.div_(1.5)",
    "torch.relu_({x})",
    "{x}.tanh_()",
    "F.leaky_relu({x}, 0.2, inplace=True)",
)
WRITES = (
    "{x}[:, 0] = {y}[:, 1]",
    "{x}[:, 0] = 0.5",
    "{x}[:, 1:] *= 0.5",
    "{x}[..., :2] += {y}[..., 1:3]",
    "{x}[0] = {y}[0] * 0.5",
    "{x}[:, 0].mul_(0.5)",
    "{x}[{x} > 1] = 1.0",
    "{x}.masked_fill_({x} < -1, -1.0)",
    "{x}[..., -1] = {x}[..., 0] + {y}[..., 1]",
    "{x}[:, ::2] = 0",
    "{x}.select(1, 0).copy_({y}.select(1, 1))",
    "{x}.narrow(1, 0, 2).zero_()",
    "{x}[:, 0] += 1",
)
VIEWS = (
    "{x}[:, :2]",
    "{x}.transpose(1, -1)",
    "{x}.flatten(1)",
    "{x}[..., 1]",
    "{x}.chunk(2, 1)[0]",
    "{x}.unsqueeze(1)",
    "{x}.detach()",
    "{x}.narrow(-1, 1, 2)",
    "{x}[0]",
)
MASKS = (
    "{x} * ({x} > {y})",
    "torch.where({x} > 0, {x}, torch.zeros_like({x}))",
    "{x}.masked_fill({x} > 1, 0.5)",
    "{x} * ({x} > {y}).float()",
    "{x} * ({x} >= 0).to({x}.dtype)",
    "torch.where({x} < {y}, {y}, 0.25)",
    "{x}.where({x}.abs() > 0.1, {y})",
    "{x} * (~({x} > 0.5)).type_as({x})",
    "{x} * ({x}.argmax(-1, keepdim=True) > 1)",
    "{x} * (({x} > 0) & ({y} > 0))",
    "{x} + ({x} == {x}.amax(-1, keepdim=True)).float()",
)


@rule(5)
def unary(w: Writer, x: Value) -> Value:
    return w.let(w.rng.choice(UNARY).format(x=x.name), x.shape)


@rule(4)
def binary(w: Writer, x: Value) -> Value | None:
    y = w.other(x)
    return None if y is None else w.let(w.rng.choice(BINARY).format(x=x.name, y=y.name), x.shape)


@rule(2)
def reduced(w: Writer, x: Value) -> Value:
    return w.let(w.rng.choice(REDUCED).format(x=x.name), x.shape)


@rule(2)
def in_place(w: Writer, x: Value) -> Value | None:
    """An in-place spelling on a value of our own, which sometimes is read under its old name later."""
    y = w.other(x)
    if y is None:
        return None
    result = w.let(w.rng.choice([f"{x.name} * 1.0", f"{x.name}.clone()", f"torch.tanh({x.name})"]), x.shape)
    w.emit(w.rng.choice(IN_PLACE).format(x=result.name, y=y.name))
    return result


@rule(2, traceable=False)
def write_items(w: Writer, x: Value) -> Value | None:
    y = w.other(x)
    if y is None:
        return None
    result = w.let(w.rng.choice([f"{x.name} + 0.0", f"{x.name}.clone()", f"{y.name} * 0.5"]), x.shape)
    for _ in range(w.rng.randint(1, 2)):
        w.emit(w.rng.choice(WRITES).format(x=result.name, y=y.name))
    return result


@rule(1.5, traceable=False)
def write_view(w: Writer, x: Value) -> Value:
    """A view is written, then what it is a view of is read."""
    result = w.let(
        w.rng.choice([f"{x.name}.clone()", f"torch.tanh({x.name})", f"{x.name}.contiguous() * 0.9"]), x.shape
    )
    view = w.let(w.rng.choice(VIEWS).format(x=result.name), ())
    w.emit(
        view.name
        + w.rng.choice([".mul_(0.5)", ".add_(0.25)", " += 0.5", ".clamp_(-1, 1)", ".relu_()", ".neg_()", "[0] = 0.0"])
    )
    return result


@rule(2)
def masked(w: Writer, x: Value) -> Value | None:
    y = w.other(x)
    if y is None:
        return None
    w.program.is_discrete = True
    return w.let(w.rng.choice(MASKS).format(x=x.name, y=y.name), x.shape)


@rule(2)
def with_parameter(w: Writer, x: Value) -> Value:
    shape = x.shape[w.rng.randrange(len(x.shape)) :]
    p = w.parameter(f"torch.randn{shape!r}".replace(",)", ")"))
    return w.let(
        w.rng.choice(["{x} + {p}", "{x} * {p}", "{p} - {x}", "torch.add({x}, {p})", "torch.maximum({x}, {p})"]).format(
            x=x.name, p=p
        ),
        x.shape,
    )


@rule(1.5)
def with_constant(w: Writer, x: Value) -> Value:
    """A tensor made in forward is an operand."""
    n = x.shape[-1]
    constant = w.rng.choice(
        [
            f"torch.ones({n})",
            f"torch.arange({n}) * 0.1",
            f"torch.full(({n},), 0.5)",
            f"torch.linspace(-1, 1, {n})",
            f"torch.tensor([0.5] * {n})",
            "torch.tensor(0.3)",
        ]
        + (
            []
            if w.program.is_traceable
            else [
                f"torch.zeros_like({x.name})",
                f"{x.name}.new_ones({n})",
                f"torch.ones({x.name}.shape[-1])",
                f"torch.eye({n})[0]",
                f"torch.arange({x.name}.size(-1), dtype={x.name}.dtype) / 8",
            ]
        )
    )
    return w.let(w.rng.choice(["{x} + {c}", "{x} * {c}", "{c} - {x}"]).format(x=x.name, c=constant), x.shape)


@rule(1.5)
def shuffled(w: Writer, x: Value) -> Value:
    """Values are moved and come back in the same shape."""
    forms = [
        "{x}.flip(-1)",
        "{x}.roll(1, 1)",
        "torch.cat([{x}[:, 1:], {x}[:, :1]], 1)",
        "torch.cat({x}.chunk(2, 1)[::-1], dim=1)",
        "torch.stack({x}.unbind(1), 1)",
        "{x}.transpose(0, 1).transpose(1, 0)",
        "{x}[:, torch.arange({n} - 1, -1, -1)]",
        "{x}.index_select(1, torch.tensor(list(range({n}))))",
        "{x}.reshape({x}.shape)",
        "{x}.sort(-1)[0]",
        "{x}.unsqueeze(1).expand(-1, 2, *[-1] * {r}).mean(1)",
        "{x}.repeat_interleave(2, 1)[:, ::2]",
        "F.pad({x}, (1, 1))[..., 1:-1]",
        "{x}.topk({last}, -1).values",
        "{x}.contiguous()",
        "{x}.detach()",
    ]
    form = w.rng.choice(forms)
    if "chunk" in form and x.shape[0] % 2:
        return w.let(f"{x.name}.flip(1)", x.shape)
    return w.let(form.format(x=x.name, n=x.shape[0], r=len(x.shape), last=x.shape[-1]), x.shape)


@rule(1.5)
def indexed(w: Writer, x: Value) -> Value:
    """Integer tensors: positions of extremes pick values or rows of a table."""
    w.program.is_discrete = True
    n = x.shape[-1]
    index = w.let(
        w.rng.choice(
            [
                f"{x.name}.argmax(-1)",
                f"torch.argmin({x.name}, dim=-1)",
                f"({x.name} > 0).sum(-1) % {n}",
                f"{x.name}.max(-1)[1]",
                f"{x.name}.max(dim=-1).indices",
            ]
        ),
        x.shape[:-1],
        "int",
    )
    choice = w.rng.choice(["gather", "one_hot", "arithmetic", "table", "parameter"])
    if choice == "table":
        return w.let(f"{x.name} + {w.module(f'nn.Embedding({n}, {n})')}({index.name})", x.shape)
    if choice == "parameter":
        return w.let(f"{x.name} + F.embedding({index.name}, {w.parameter(f'torch.randn({n}, {n})')})", x.shape)
    forms = {
        "gather": "{x} + {x}.gather(-1, {i}.unsqueeze(-1))",
        "one_hot": "{x} * F.one_hot({i}, {n})",
        "arithmetic": "{x} * (1 + {i}.unsqueeze(-1) * 0.1)",
    }
    return w.let(forms[choice].format(x=x.name, i=index.name, n=n), x.shape)


@rule(1, (1,), keeps_shape=False)
def outer(w: Writer, x: Value) -> Value:
    return w.let(
        w.rng.choice(
            [
                f"{x.name}.view({x.name}.size(0), 2, {x.shape[0] // 2})",
                f"{x.name}.unflatten(1, (2, {x.shape[0] // 2}))",
                f"{x.name}.reshape(-1, 2, {x.shape[0] // 2})",
            ]
        ),
        (2, x.shape[0] // 2),
    )


@rule(1, (2, 3), keeps_shape=False)
def smaller(w: Writer, x: Value) -> Value:
    """A reduction over the last axis, one slice, or all of it as a vector."""
    if len(x.shape) == 2 and prod(x.shape) <= 32 and w.rng.random() < 0.4:
        return w.let(
            w.rng.choice([f"{x.name}.flatten(1)", f"{x.name}.reshape({x.name}.shape[0], -1)"]), (prod(x.shape),)
        )
    if x.shape[0] < 4:
        return w.let(f"{x.name}.mean(1)", x.shape[1:])
    form = w.rng.choice(
        [
            "{x}.mean(-1)",
            "{x}.amax(dim=-1)",
            "{x}[..., 0]",
            "{x}.sum(-1) * 0.3",
            "{x}.max(-1)[0]",
            "{x}.select(-1, 1)",
            "{x}.logsumexp(-1)",
        ]
    )
    return w.let(form.format(x=x.name), x.shape[:-1])


@rule(1)
def without_grad(w: Writer, x: Value) -> Value:
    w.emit("with torch.no_grad():")
    inner = w.nested(x, 1)
    return inner


@rule(1)
def helped(w: Writer, x: Value) -> Value | None:
    """A function of the user that several modules call."""
    if not w.program.helpers:
        return None
    gain = w.rng.choice(["", ", 0.5", ", gain=0.25"])
    return w.let(f"{w.rng.choice(w.program.helpers)}({x.name}{gain})", x.shape)
