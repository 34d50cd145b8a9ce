"""Ops outside of a model's own stubs, which the JIT methods leave as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import fx, nn

from profiler.quant.fx.wrapped import KEPT
from profiler.quant.ops.registry import Family, spec_of_module


def modules_outside(model: nn.Module, graph: fx.Graph) -> list[nn.Module]:
    """Modules that no recorded call reached behind a QuantStub and before a DeQuantStub."""
    inside: set[fx.Node] = set()
    called: dict[str, bool] = {}
    for node in graph.nodes:
        is_inside = any(source in inside for source in node.all_input_nodes)
        if node.op == "call_module":
            path = str(node.target)
            module = model.get_submodule(path)
            if getattr(spec_of_module(module), "family", None) is Family.STUB:
                if type(module).__name__ != "DeQuantStub":
                    inside.add(node)
                continue
            called[path] = called.get(path, False) or is_inside
        if is_inside:
            inside.add(node)
    return [model.get_submodule(path) for path, is_inside in called.items() if not is_inside]


@contextmanager
def left_alone(modules: list[nn.Module]) -> Iterator[None]:
    """Within this block nothing is fused with these modules."""
    for module in modules:
        module.__dict__[KEPT] = True
    try:
        yield
    finally:
        for module in modules:
            module.__dict__.pop(KEPT, None)
