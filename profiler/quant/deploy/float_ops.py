"""Float ops in the middle of a converted model: values leave the accelerator for the CPU and come back."""

from __future__ import annotations

from collections.abc import Iterable

from profiler.quant.deploy.layers import LayerFact
from profiler.quant.ops.registry import all_specs

_BOUNDARIES = ("quant_stub", "dequant_stub")
_NOTHING_TO_DO = ("dropout", "identity")
_FLOATS = ("torch.float", "torch.bfloat", "torch.double", "torch.half", "torch.complex")


def float_ops_between(layers: list[LayerFact]) -> list[tuple[LayerFact, str]]:
    """Ops that compute in float what quantized ops gave, before quantized ops or a DeQuantStub read it; and why.

    Pre-processing reads nothing quantized, post-processing follows the last DeQuantStub: neither is told. In front of a
    DeQuantStub only ops without a quantized form are, since a high-precision output may be processed further.
    """
    after = _reached(layers)
    readers = [layer for layer in layers if layer.is_quantized and layer.operator != "dequant_stub"]
    before = _leading_to(layers, (name for layer in readers for name in layer.producers))
    stubs = [layer for layer in layers if layer.operator == "dequant_stub" and not layer.is_quantized]
    before_stub = _leading_to(layers, (name for layer in stubs for name in layer.producers))
    forms = {spec.name for spec in all_specs()}
    found = []
    for layer in layers:
        has_form = layer.operator in forms
        is_between = layer.name in before or (layer.name in before_stub and not has_form)
        if _is_float(layer) and layer.name in after and is_between:
            found.append((layer, _reason(layer, has_form=has_form)))
    return found


def _reason(layer: LayerFact, *, has_form: bool) -> str:
    if has_form:
        return (
            f"runs in float on the CPU between quantized ops, though {layer.operator} has a quantized form; its "
            "operands are float, or its qconfig is None"
        )
    kind = layer.operator or layer.kind.rpartition(".")[2]
    return (
        f"runs in float on the CPU: no quantized form of {kind}; replace it by ops that have one (docs/operators.md), "
        "or move it in front of the first QuantStub or behind the last DeQuantStub"
    )


def _is_float(layer: LayerFact) -> bool:
    if layer.is_quantized or layer.operator in (*_BOUNDARIES, *_NOTHING_TO_DO):
        return False
    return all(any(t.dtype.startswith(_FLOATS) for t in facts) for facts in (layer.inputs, layer.outputs))


def _reached(layers: list[LayerFact]) -> set[str]:
    """Op calls that are quantized, or read what comes from one that is."""
    reached: set[str] = set()
    for layer in layers:
        if layer.is_quantized or any(name in reached for name in layer.producers):
            reached.add(layer.name)
    return reached


def _leading_to(layers: list[LayerFact], names: Iterable[str]) -> set[str]:
    """The named op calls and all whose results they read."""
    leading = set(names)
    for layer in reversed(layers):
        if layer.name in leading:
            leading |= set(layer.producers)
    return leading
