"""A random eager network from a seed: a real Python module, made from text that can be read."""

from __future__ import annotations

import linecache
import random
import re
import sys
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from tests.random_nets import control, layers, statements
from tests.random_nets.writer import Program, Value, Writer

IMAGE = (4, 6, 6)
_SHAPES = (IMAGE, (4, 8), (8,))
_HEAD = '''"""Random network of seed {seed}."""
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from profiler.quant import DeQuantStub, QuantStub

PATH = []


def took(place, value):
    value = int(value)
    PATH.append((place, value))
    return value


@dataclass
class Result:
    main: Any
    others: Any = None


class Size(nn.Module):
    def forward(self, x):
        return 4 / x.shape[-1]


class Mean(nn.Module):
    def forward(self, x):
        return 0.5 + min(1.0, abs(float(x.mean())))


class Recursive(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.step = nn.Linear(width, width)

    def forward(self, x, depth=0):
        if depth == 3 or took(-1, x.mean() > 0.3):
            return x
        y = torch.tanh(self.step(x)) + x * 0.5
        return self(y, depth + 1) if depth % 2 else self.forward(y, depth=depth + 1)
'''


@dataclass(frozen=True)
class Net:
    """A random network in eval, its batches, and its text."""

    seed: int
    model: nn.Module
    batches: list[Any]
    code: str
    path: list[Any]
    is_discrete: bool

    def run(self, model: nn.Module, batch: Any) -> tuple[Any, list[Any]]:
        """Outputs of a stage of the network, and which way its data took."""
        self.path.clear()
        batch = fresh(batch)
        with torch.no_grad():
            result = model(**batch) if isinstance(batch, dict) else model(*batch)
        return result, list(self.path)


def random_net(seed: int, *, traceable: bool = False, stubs: bool = False, num_batches: int = 3) -> Net:
    """The network of a seed; numbers that vanish or explode are drawn again.

    Args:
        seed: decides everything.
        traceable: without what symbolic tracing cannot follow.
        stubs: with a QuantStub and DeQuantStubs, as the eager front end needs them.
        num_batches: how many batches; they may take different ways.
    """
    for attempt in range(20):
        net = _draw(seed, attempt, traceable, stubs, num_batches)
        if all(_is_sensible(net.run(net.model, batch)[0]) for batch in net.batches):
            return net
    raise AssertionError(f"seed {seed}: no attempt gives sensible values")


def fresh(batch: Any) -> Any:
    """New tensors with the same values."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, batch)


def _is_sensible(result: Any) -> bool:
    found = [t for t in tensors_of(result) if t.is_floating_point()]
    return bool(found) and all(bool(t.isfinite().all()) and 1e-3 < float(t.pow(2).mean()) ** 0.5 < 30 for t in found)


def tensors_of(value: Any) -> list[Tensor]:
    """Tensors of a nest of tuples, lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in tensors_of(v)]
    if isinstance(value, (tuple, list)):
        return [t for v in value for t in tensors_of(v)]
    return tensors_of(vars(value)) if type(value).__name__ == "Result" else []


def _draw(seed: int, attempt: int, traceable: bool, stubs: bool, num_batches: int) -> Net:
    program = Program(random.Random(f"{seed}/{attempt}/{traceable}"), traceable)
    has_tokens = program.rng.random() < 0.3
    form = program.rng.choice(["plain", "plain", "keyword", "dict", "optional"])
    form = "plain" if traceable and form == "dict" else form
    code = _code(seed, program, form, has_tokens, stubs)
    name = f"random_net_{seed}_{attempt}_{int(traceable)}{int(stubs)}"
    module = _load(name, code)
    torch.manual_seed(seed)
    model: nn.Module = module.Net().eval()
    _give_statistics(model)
    batches = [_batch(form, has_tokens, 2 if traceable else 1 + (i + seed) % 3) for i in range(num_batches)]
    return Net(seed, model, batches, code, module.PATH, program.is_discrete)


def _load(name: str, code: str) -> Any:
    """Run the text as a module that pickle and error messages can find."""
    module = types.ModuleType(name)
    filename = f"<{name}>"
    linecache.cache[filename] = (len(code), None, code.splitlines(keepends=True), filename)
    sys.modules[name] = module
    exec(compile(code, filename, "exec"), module.__dict__)
    return module


def _give_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.get_buffer("running_mean"), -0.2, 0.2)
            nn.init.uniform_(module.get_buffer("running_var"), 0.3, 1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
        if isinstance(module, (nn.Conv2d, nn.Conv1d, nn.Linear, nn.ConvTranspose2d)):
            module.weight.data.mul_(1.5)


def _batch(form: str, has_tokens: bool, size: int) -> Any:
    image = torch.randn(size, *IMAGE) * 1.2 + torch.randn(()) * 0.2
    tokens = torch.randint(0, 9, (size, 4))
    if form == "dict":
        return ({"image": image, "tokens": tokens},)
    if form == "keyword":
        return {"image": image, "tokens": tokens} if has_tokens else {"image": image}
    return (image, tokens) if has_tokens else (image,)


def _code(seed: int, program: Program, form: str, has_tokens: bool, stubs: bool) -> str:
    program.parts.append(_HEAD.format(seed=seed))
    for _ in range(program.rng.randint(0, 2)):
        _helper(program)
    for _ in range(program.rng.randint(1, 4)):
        _block(program)
    _net(program, form, has_tokens, stubs)
    return "\n\n".join(program.parts)


def _helper(program: Program) -> None:
    w, name = Writer(program), program.name("helper")
    w.indent = 1
    x = Value("x", (8,))
    body = w.rng.sample(statements.UNARY, 2)
    for form in body:
        if "self." not in form:
            x = w.let(form.format(x=x.name), x.shape)
    w.emit(f"return {x.name} * gain + x")
    program.parts.append("\n".join([f"def {name}(x, gain=0.8):", *w.lines, ""]))
    program.helpers.append(name)


def _block(program: Program) -> None:
    w, name, shape = Writer(program), program.name("Block"), program.rng.choice(_SHAPES)
    x = Value("x", shape)
    w.values.append(x)
    for i in range(w.rng.randint(2, 5)):
        x = w.statement(x, keeps_shape=True)
        if i == 1 and not program.is_traceable and w.rng.random() < 0.2:
            control.early_return(w, x)
    w.emit(f"return {x.name} * gain" if w.rng.random() < 0.5 else f"return {x.name}")
    program.parts.append(_class(name, w, "self, x, gain=0.9"))
    program.blocks[name] = shape


def _class(name: str, w: Writer, arguments: str) -> str:
    init = [f"        {line}" for line in w.init]
    return "\n".join(
        [
            f"class {name}(nn.Module):",
            "    def __init__(self):",
            "        super().__init__()",
            *init,
            "",
            f"    def forward({arguments}):",
            *w.lines,
            "",
        ]
    )


def _net(program: Program, form: str, has_tokens: bool, stubs: bool) -> None:
    w = Writer(program)
    arguments = {"plain": "self, image", "keyword": "self, *, image", "dict": "self, batch", "optional": "self, image"}[
        form
    ]
    if form == "dict":
        w.emit('image, tokens = batch["image"], batch["tokens"]')
    else:
        arguments += ", tokens=None, **others" if form == "optional" else ", tokens" if has_tokens else ""
    w.init.append("self.unused = nn.Linear(3, 3)")
    if stubs:
        w.init += ["self.quant, self.dequant = QuantStub(), DeQuantStub()"]
    source = w.let("self.quant(image)" if stubs else "image", IMAGE)
    w.values.append(source)
    if (has_tokens or form == "dict") and not stubs:
        w.values.append(w.let(f"{w.module('nn.Embedding(9, 8)')}(tokens)", (4, 8)))
    w.values.append(layers.conv(w, source))  # something to quantize in every network
    for _ in range(w.rng.randint(5, 11)):
        recent = [v for v in w.values[-4:] if v.kind == "float" and v.shape]
        w.statement(w.rng.choice(recent))
        if w.rng.random() < 0.2:  # join with an older value of the same shape
            w.values.append(_joined(w, w.values[-1]))
    _outputs(w, stubs)
    program.parts.append(_class("Net", w, arguments))


def _joined(w: Writer, x: Value) -> Value:
    y = w.other(x)
    return w.let(f"torch.cat([{x.name}, {x.name if y is None else y.name}], 1).chunk(2, 1)[0]", x.shape)


def _outputs(w: Writer, stubs: bool) -> None:
    """Tuple, dict, nested, dataclass or tensor; with integers, None and numbers in it."""
    close = "self.dequant({})" if stubs else "{}"
    last, *others = (close.format(v.name) for v in _unread(w))
    if len(others) > 1 and w.rng.random() < 0.3:
        others.pop()  # what nobody reads is computed all the same
    first = others[0] if others else last
    nested = f"[{', '.join([*others, first])}]"
    forms = [
        f"({last}, {', '.join([*others, last])})",
        f'{{"main": {last}, "parts": ({nested}, None), "n": 3}}',
        f'{{"main": {last}, "nested": {{"first": {nested}, "best": {last}.argmax(-1)}}}}',
    ]
    if not others:
        forms = [last]
    elif not w.program.is_traceable:
        forms += [f"Result({last}, [{nested}, {{'k': None}}])"]
    w.emit(f"return {w.rng.choice(forms)}")


def _unread(w: Writer) -> list[Value]:
    """The last float value first, then those that no line reads."""
    text = "\n".join(w.lines)
    floats = [v for v in w.values if v.kind == "float" and v.shape]
    return [floats[-1], *(v for v in floats[:-1] if len(re.findall(rf"\b{v.name}\b", text)) == 1)]
