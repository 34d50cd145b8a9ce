"""Random statements with modules: convolutions that fuse, linear, norms, attention, recurrent loops, own blocks."""

from __future__ import annotations

from tests.random_nets.writer import Value, Writer, rule


@rule(4, (3,))
def conv(w: Writer, x: Value) -> Value:
    """Conv, often with BatchNorm and an activation or a residual add, so that groups fuse."""
    channels = x.shape[0]
    groups = w.rng.choice([1, 1, 1, channels])
    kernel = w.rng.choice([1, 3])
    y = w.let(
        w.call(
            w.module(f"nn.Conv2d({channels}, {channels}, {kernel}, padding={kernel // 2}, groups={groups})"), x.name
        ),
        x.shape,
    )
    if w.rng.random() < 0.6:
        y = w.let(w.call(w.module(f"nn.BatchNorm2d({channels})"), y.name), x.shape)
    if w.rng.random() < 0.4:
        y = w.let(
            w.rng.choice([f"{y.name} + {x.name}", f"{x.name} + {y.name}", f"torch.add({y.name}, {x.name})"]), x.shape
        )
    if w.rng.random() < 0.6:
        y = w.let(_activation(w, y.name), x.shape)
    return y


def _activation(w: Writer, x: str) -> str:
    module = w.rng.choice(["", "", "nn.ReLU()", "nn.ReLU(inplace=True)", "nn.ReLU6()", "nn.SiLU()"])
    return (
        f"{w.module(module)}({x})"
        if module
        else w.rng.choice([f"F.relu({x})", f"F.relu({x}, inplace=True)", f"{x}.relu()"])
    )


@rule(1, (3,))
def conv_by_function(w: Writer, x: Value) -> Value:
    c = x.shape[0]
    p = w.parameter(f"torch.randn({c}, {c}, 3, 3) * 0.2")
    bias = w.rng.choice(["", f", {w.parameter(f'torch.randn({c}) * 0.1')}"])
    return w.let(f"F.conv2d({x.name}, {p}{bias}, padding=1)", x.shape)


@rule(0.7, (3,))
def up_and_down(w: Writer, x: Value) -> Value:
    c, half = x.shape[0], (x.shape[1] // 2, x.shape[2] // 2)
    down = w.rng.choice(
        [
            "F.avg_pool2d({x}, 2)",
            "F.max_pool2d({x}, 2)",
            "nn.MaxPool2d(2)",
            f"nn.Conv2d({c}, {c}, 2, 2)",
            f"F.adaptive_avg_pool2d({{x}}, {half})",
            "nn.AvgPool2d(2)",
        ]
    )
    y = w.let(_module_or_function(w, down, x.name), (c, *half))
    up = w.rng.choice(
        [
            "F.interpolate({x}, scale_factor=2)",
            f"nn.ConvTranspose2d({c}, {c}, 2, 2)",
            "nn.Upsample(scale_factor=2)",
            f"F.interpolate({{x}}, size={x.name}.shape[-2:], mode='bilinear', align_corners=False)",
        ]
    )
    return w.let(_module_or_function(w, up, y.name), x.shape)


def _module_or_function(w: Writer, form: str, x: str) -> str:
    return f"{w.module(form)}({x})" if form.startswith("nn.") else form.format(x=x)


@rule(1, (3,), keeps_shape=False)
def to_sequence(w: Writer, x: Value) -> Value:
    y = w.let(f"F.adaptive_avg_pool2d({x.name}, 2)", (x.shape[0], 2, 2))
    return w.let(
        w.rng.choice(
            [f"{y.name}.flatten(2).transpose(1, 2)", f"{y.name}.permute(0, 2, 3, 1).reshape(-1, 4, {x.shape[0]})"]
        ),
        (4, x.shape[0]),
    )


@rule(0.7, (3,), keeps_shape=False)
def to_vector(w: Writer, x: Value) -> Value:
    return w.let(
        w.rng.choice(
            [
                "{x}.mean((2, 3))",
                "F.adaptive_avg_pool2d({x}, 1).flatten(1)",
                "{x}.mean([-2, -1])",
                "{x}.amax(dim=(2, 3))",
                "torch.flatten(F.adaptive_max_pool2d({x}, 1), 1)",
            ]
        ).format(x=x.name),
        x.shape[:1],
    )


@rule(3, (1, 2))
def linear(w: Writer, x: Value) -> Value:
    n = x.shape[-1]
    if w.rng.random() < 0.6:
        deep = f"nn.Sequential(nn.Linear({n}, 12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, {n}))"
        return w.let(
            w.call(w.module(w.rng.choice([f"nn.Linear({n}, {n})", f"nn.Linear({n}, {n}, bias=False)", deep])), x.name),
            x.shape,
        )
    p = w.parameter(f"torch.randn({n}, {n}) * 0.4")
    return w.let(
        w.rng.choice([f"F.linear({x.name}, {p})", f"{x.name} @ {p}", f"torch.matmul({x.name}, {p}.t())"]), x.shape
    )


@rule(1, (2,))
def conv_over_time(w: Writer, x: Value) -> Value:
    n = x.shape[-1]
    module = w.module(f"nn.Conv1d({n}, {n}, 3, padding=1)")
    return w.let(f"{module}({x.name}.transpose(1, 2)).transpose(1, 2)", x.shape)


@rule(1.5, (1, 2))
def norm(w: Writer, x: Value) -> Value:
    return w.let(w.call(w.module(f"nn.LayerNorm({x.shape[-1]})"), x.name), x.shape)


@rule(0.7, (3,))
def channel_norm(w: Writer, x: Value) -> Value:
    c = x.shape[0]
    return w.let(
        w.call(
            w.module(w.rng.choice([f"nn.GroupNorm(2, {c})", f"nn.BatchNorm2d({c})", f"nn.InstanceNorm2d({c})"])), x.name
        ),
        x.shape,
    )


@rule(1.5, (2,))
def attention(w: Writer, x: Value) -> Value:
    t, n = x.shape
    q = x.name
    if n % 2 == 0 and w.rng.random() < 0.4:
        module = w.module(f"nn.MultiheadAttention({n}, 2, batch_first=True)")
        return w.let(f"{module}({q}, {q}, {q}, need_weights=False)[0]", x.shape)
    if w.rng.random() < 0.4:
        causal = w.rng.choice(["", ", is_causal=True"])
        key = w.let(f"{w.module(f'nn.Linear({n}, {n})')}({q})", x.shape)
        return w.let(f"F.scaled_dot_product_attention({q}, {key.name}, {q}{causal})", x.shape)
    scores = w.rng.choice(
        [
            f"torch.matmul({q}, {q}.transpose(-2, -1))",
            f"torch.einsum('btd,bsd->bts', {q}, {q})",
            f"torch.bmm({q}, {q}.transpose(1, 2))",
        ]
    )
    s = w.let(f"torch.softmax({scores} / {n**0.5:.3f}, dim=-1)", (t, t))
    return w.let(f"{s.name} @ {q}", x.shape)


@rule(0.7, (2,))
def recurrent_loop(w: Writer, x: Value) -> Value:
    """A cell called once per time step by Python's own loop."""
    t, n = x.shape
    kind = w.rng.choice(["LSTM", "GRU"])
    cell = w.module(f"nn.{kind}Cell({n}, {n})")
    state = (
        w.let(f"{x.name}[:, 0] * 0", (n,))
        if w.program.is_traceable
        else w.let(f"torch.zeros({x.name}.shape[0], {n})", (n,))
    )
    steps, k = w.program.name("steps"), w.program.name("t")
    w.emit(f"{steps} = []")
    if kind == "LSTM":
        memory = w.let(state.name, (n,))
    w.emit(f"for {k} in range({t}):")
    if kind == "LSTM":
        w.emit(f"    {state.name}, {memory.name} = {cell}({x.name}[:, {k}], ({state.name}, {memory.name}))")
    else:
        w.emit(f"    {state.name} = {cell}({x.name}[:, {k}], {state.name})")
    w.emit(f"    {steps}.append({state.name})")
    return w.let(f"torch.stack({steps}, 1)", x.shape)


@rule(0.4, (2,))
def recurrent_layer(w: Writer, x: Value) -> Value:
    n, kind = x.shape[-1], w.rng.choice(["LSTM", "GRU"])
    return w.let(f"{w.module(f'nn.{kind}({n}, {n}, batch_first=True)')}({x.name})[0]", x.shape)


@rule(0.7)
def dropout(w: Writer, x: Value) -> Value:
    return w.let(f"{w.module('nn.Dropout(0.2)')}({x.name})", x.shape)


@rule(0.7)
def several_times(w: Writer, x: Value) -> Value:
    """A list of modules in a loop, or one module several times."""
    inner = w.rng.choice(
        [
            "nn.Tanh()",
            "nn.Hardswish()",
            "nn.Identity()",
            f"nn.LayerNorm({x.shape[-1]})",
            f"nn.Linear({x.shape[-1]}, {x.shape[-1]})",
        ]
    )
    modules = w.module(f"nn.ModuleList({inner} for _ in range(2))")
    result, m = w.let(f"{x.name} * 1.0", x.shape), w.program.name("m")
    w.emit(f"for {m} in {w.rng.choice([modules, f'[{modules}[0]] * 3', f'reversed({modules})'])}:")
    w.emit(
        f"    {result.name} = {m}({result.name}) + {x.name}"
        if w.rng.random() < 0.5
        else f"    {result.name} = {m}({result.name})"
    )
    return result


@rule(3)
def own_block(w: Writer, x: Value) -> Value | None:
    """A submodule with its own forward, sometimes with keywords, sometimes twice in a row."""
    fitting = [name for name, shape in w.program.blocks.items() if shape == x.shape]
    if not fitting:
        return None
    block = w.module(f"{w.rng.choice(fitting)}()")
    calls = [f"{block}({x.name})"] * 3 + [
        f"{block}(x={x.name})",
        f"{block}({x.name}, gain=0.5)",
        f"{block}({block}({x.name}))",
        f"{block}.forward({x.name})",
        f"{block}({x.name}, **{{'gain': 0.7}})",
        f"{block}({x.name}) + {block}({x.name} * 0.5)",
    ]
    return w.let(w.rng.choice(calls), x.shape)
