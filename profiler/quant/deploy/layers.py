"""What each op of a model costs and in which dtypes it runs, from one forward."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from profiler.quant.affine import qinfo
from profiler.quant.deploy.follow import OpFollower, RunningOp, following
from profiler.quant.deploy.structure import bind_inputs, explained_inputs, on_cpu
from profiler.quant.deploy.traced import TracedRun, is_traced_module
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.naming import canonical_function_name
from profiler.quant.ops.functional import tensors_in
from profiler.quant.ops.registry import all_specs, spec_of_class, spec_of_function
from profiler.quant.qtensor import QTensor
from profiler.quant.wrapping import skipping

FLOAT = "torch.float32"
_BITS = {"qint4": 4, "qint8": 8, "qint16": 16, "qint32": 32}


@dataclass(frozen=True)
class TensorFact:
    """Shape and dtype of an operand: "qint8" for codes and values on a grid, else torch's name."""

    shape: tuple[int, ...]
    dtype: str
    num_bytes: int


@dataclass(frozen=True)
class LayerFact:
    """One op call.

    Attributes:
        name: op call.
        op_name: op.
        kind: class path, or `torch.<function>`.
        operator: name in the operator table, or "" where it has no row.
        module: the module, or None.
        inputs: operands in order.
        outputs: results in order.
        flops: floating-point or integer operations; two for each multiply-add.
        weight_bytes: bytes of weights and biases.
        source: line of the user's code.
        scales: scales of the results.
        producers: for each operand the op call that made it, or "".
        input_scales: scales of the quantized operands.
    """

    name: str
    op_name: str
    kind: str
    operator: str
    module: nn.Module | None
    inputs: tuple[TensorFact, ...]
    outputs: tuple[TensorFact, ...]
    flops: int
    weight_bytes: int
    source: str
    scales: tuple[Tensor, ...]
    producers: tuple[str, ...]
    input_scales: tuple[float, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes read and written: operands, results, weights."""
        return sum(t.num_bytes for t in (*self.inputs, *self.outputs)) + self.weight_bytes

    @property
    def is_quantized(self) -> bool:
        """Whether an operand or a result is quantized."""
        return any(t.dtype.startswith("q") for t in (*self.inputs, *self.outputs))


class _ProductFlops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations of products since it was last asked."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.count += int(formula(*args, **(kwargs or {}), out_val=result))
        return result


class _Collector:
    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.flops = _ProductFlops()
        self.follower = OpFollower(model, self.before, self.after)
        self.layers: list[LayerFact] = []
        self._inputs: list[tuple[TensorFact, ...]] = []
        self._producers: list[tuple[str, ...]] = []
        self._scales: list[tuple[float, ...]] = []
        self._made_by: dict[tuple[int, tuple[int, ...]], str] = {}
        self._alive: list[Tensor] = []
        self._traced: Counter[str] = Counter()

    def before(self, running: RunningOp) -> None:
        self.flops.count = 0
        operands = tensors_in([running.args, running.kwargs])
        self._inputs.append(tuple(_operand_fact(running.module, k, t) for k, t in enumerate(operands)))
        per_tensor = [t.scale for t in operands if isinstance(t, QTensor) and t.ch_axis < 0]
        self._scales.append(tuple(float(scale) for scale in per_tensor))
        self._producers.append(tuple(self._made_by.get(_key(t), "") for t in operands))

    def after(self, running: RunningOp, result: Any) -> None:
        inputs, producers, scales = self._inputs.pop(), self._producers.pop(), self._scales.pop()
        results = tensors_in(result)
        if not results:
            return
        elements = sum(t.numel() for t in results)
        fact = LayerFact(
            name=running.name,
            op_name=running.op_name,
            kind=running.kind,
            operator=operator_of(running),
            module=running.module,
            inputs=inputs,
            outputs=tuple(_fact(t) for t in results),
            flops=self.flops.count or elements,
            weight_bytes=_weight_bytes(running.module),
            source=running.source,
            scales=tuple(t.scale for t in results if isinstance(t, QTensor)),
            producers=producers,
            input_scales=scales,
        )
        self.layers.append(fact)
        self._remember(results, running.name)

    def after_node(self, scope: str, source: str, results: list[Tensor]) -> None:
        """One aten operator of a traced module: nodes of one scope that follow each other are one layer."""
        count, self.flops.count = self.flops.count, 0
        if not results:
            return
        facts = tuple(_fact(t) for t in results)
        last = self.layers[-1] if self.layers else None
        if last is not None and last.op_name == scope:
            self.layers[-1] = _joined(last, facts, count)
        else:
            name = f"{scope}({self._traced[scope]})" if self._traced[scope] else scope
            self._traced[scope] += 1
            inputs = () if last is None else last.outputs
            by = ("",) if last is None else (last.name,)
            self.layers.append(
                LayerFact(name, scope, "traced module", "", None, inputs, facts, count, 0, source, (), by)
            )

    def _remember(self, results: list[Tensor], name: str) -> None:
        for tensor in results:
            self._made_by[_key(tensor)] = name
            self._alive.append(tensor)


def collect_layers(model: nn.Module, example_inputs: Any) -> list[LayerFact]:
    """Every op call of one forward, in order. The model's state and flags stay as they are."""
    args, kwargs = on_cpu(bind_inputs(model, example_inputs))
    collector = _Collector(model)
    with torch.no_grad(), explained_inputs(model, example_inputs):
        model(*on_cpu(args), **on_cpu(kwargs))  # what the first forward computes once is no cost of an op
    with torch.no_grad(), collector.flops:
        if is_traced_module(model):
            TracedRun(model, collector.after_node)(*args, **kwargs)
        else:
            with following(collector.follower), skipping():
                model(*args, **kwargs)
    return collector.layers


def operator_of(running: RunningOp) -> str:
    """Name in the operator table of what runs, or ""."""
    module = running.module
    if module is None:
        spec = spec_of_function(canonical_function_name(running.kind.removeprefix("torch.")))
        return spec.name if spec is not None else ""
    function = getattr(module, "function", None)
    if hasattr(module, "add_scalar") and running.args and isinstance(running.args[0], str):  # a FloatFunctional
        function = running.args[0]
    if isinstance(function, str):
        spec = spec_of_function(function)
        return spec.name if spec is not None else function
    for base in type(module).__mro__:
        spec = spec_of_class(base)
        if spec is not None:
            return spec.name
    return _by_base_name(str(getattr(module, "base_name", "")))


def _by_base_name(base_name: str) -> str:
    """Integer forms that do not extend the class they stand for know its name."""
    for spec in all_specs():
        names = {cls.__name__ for cls in spec.modules}
        if base_name and (base_name in names or any(n.rstrip("123d") == base_name for n in names)):
            return spec.name
    return ""


def _joined(layer: LayerFact, outputs: tuple[TensorFact, ...], flops: int) -> LayerFact:
    return replace(layer, outputs=outputs, flops=layer.flops + flops)


def _operand_fact(module: nn.Module | None, k: int, tensor: Tensor) -> TensorFact:
    """A constant that its op quantizes itself (`constant_<k>`, see ops/constants.py) has its quantizer's dtype."""
    info = getattr(module, "out_info", None)
    if not isinstance(tensor, QTensor) and info is not None and hasattr(module, f"constant_{k}_scale"):
        return _quantized_fact(tuple(tensor.shape), info.name)
    fake_quant = getattr(module, f"constant_{k}", None)
    if not isinstance(tensor, QTensor) and isinstance(fake_quant, FakeQuantize):
        return _quantized_fact(tuple(tensor.shape), fake_quant.dtype)
    return _fact(tensor)


def _fact(tensor: Tensor) -> TensorFact:
    shape = tuple(tensor.shape)
    if isinstance(tensor, QTensor):
        return _quantized_fact(shape, tensor.qdtype)
    return TensorFact(shape, str(tensor.dtype), tensor.numel() * tensor.element_size())


def _quantized_fact(shape: tuple[int, ...], qdtype: str) -> TensorFact:
    bits = _BITS.get(qdtype) or (qinfo(qdtype).quant_max + 1).bit_length() * 2
    return TensorFact(shape, qdtype, -(-math.prod(shape) * bits // 8))


def _weight_bytes(module: nn.Module | None) -> int:
    """Bytes of the weight (one per int8 code, also where a fake-quant form holds floats) and of the int32 bias."""
    if module is None:
        return 0
    total = 0
    for name in ("weight", "bias"):
        tensor = getattr(module, name, None)
        if isinstance(tensor, Tensor):
            is_codes = name == "weight" and (hasattr(module, "weight_fake_quant") or not tensor.is_floating_point())
            total += tensor.numel() * (1 if is_codes else 4)
    return total


def _key(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    plain = tensor.plain if isinstance(tensor, QTensor) else tensor
    return plain.untyped_storage().data_ptr(), tuple(plain.shape)
