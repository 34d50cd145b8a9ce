"""One op call as plain facts: module, operator, dtypes and scales of its tensors, who made its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.ops.functional import spec_of_form
from profiler.quant.ops.registry import Family, OpSpec, spec_of_function
from profiler.quant.qtensor import QTensor
from profiler.quant.switches import FakeCast

OUTPUT = "activation_post_process"


@dataclass(frozen=True)
class TensorFacts:
    """Shape, dtype and scale of a tensor as it passed."""

    shape: tuple[int, ...]
    dtype: str
    scale: tuple[float, ...]
    ch_axis: int


@dataclass(frozen=True)
class OpFacts:
    """One op call.

    Attributes:
        name: op name with its call number.
        op_name: op name.
        call: 0 for the first call.
        type_name: class path, or `torch.<function>`.
        method: of a FloatFunctional.
        module: the module, or None for a function.
        spec: operator, or None where it has no quantized form.
        inputs: tensors that went in, in order.
        outputs: tensors that came out.
        producers: for each input the op call that made it, or None.
        fused_names: paths of the group that this op stands for.
        source: line of the user's code.
        is_pass_through: what comes out is what went in.
    """

    name: str
    op_name: str
    call: int
    type_name: str
    method: str
    module: nn.Module | None
    spec: OpSpec | None
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    producers: tuple[str | None, ...]
    fused_names: tuple[str, ...]
    source: str
    is_pass_through: bool

    @property
    def is_stub(self) -> bool:
        """Whether the op is a QuantStub or DeQuantStub."""
        return self.spec is not None and self.spec.family is Family.STUB

    @property
    def base_name(self) -> str:
        """Class name without its path: QuantStub."""
        return self.type_name.rpartition(".")[2]

    @property
    def output_fake_quant(self) -> FakeQuantize | None:
        """Fake quant of the op's output, or None where it has none."""
        found = getattr(self.module, OUTPUT, None)
        return found if isinstance(found, FakeQuantize) else None

    @property
    def observer(self) -> str:
        """What the observer column says of the op's output."""
        cast = cast_of(self.module)
        if self.output_fake_quant is None and cast is not None:
            return describe_cast(cast)
        return describe_observer(self.output_fake_quant)


def spec_of_call(module: nn.Module | None, op_name: str, method: str) -> OpSpec | None:
    """Operator behind an op call of any stage, or None where it has no quantized form."""
    if module is None:
        return spec_of_function(op_name.rpartition(".")[2].rpartition("_")[0])
    return spec_of_form(module, method)


def tensor_facts(tensor: Tensor) -> TensorFacts:
    """Shape, dtype name and scale of a live tensor."""
    if isinstance(tensor, QTensor):
        scale = tuple(float(s) for s in tensor.scale.reshape(-1))
        return TensorFacts(tuple(tensor.shape), tensor.qdtype, scale, tensor.ch_axis)
    return TensorFacts(tuple(tensor.shape), str(tensor.dtype), (), -1)


def consumers(facts: Mapping[str, OpFacts]) -> dict[str, list[str]]:
    """For each op call the calls that read its output."""
    readers: dict[str, list[str]] = {name: [] for name in facts}
    for name, call in facts.items():
        for producer in call.producers:
            if producer in readers and name not in readers[producer]:
                readers[producer].append(name)
    return readers


def describe_observer(fake_quant: FakeQuantize | None) -> str:
    """Observer as tables print it: `MinMaxObserver(averaging_constant=0.01)`, `FixedScaleObserver(scale=0.0078125)`.

    A learned fake quant is named around its observer; a missing one gives "".
    """
    if fake_quant is None:
        return ""
    observer = fake_quant.activation_post_process
    text = f"{type(observer).__name__}(averaging_constant={observer.averaging_constant})"
    if observer.is_fixed:
        scales = torch.as_tensor(fake_quant.scale).detach().reshape(-1)
        more = f", ... {scales.numel()} channels" if scales.numel() > 1 else ""
        text = f"{type(observer).__name__}(scale={float(scales[0]):.7g}{more})"
    return text if type(fake_quant) is FakeQuantize else f"{type(fake_quant).__name__}({text})"


def cast_of(module: nn.Module | None) -> FakeCast | None:
    """The cast that an op's float output goes through, or None: the op itself, or one that a qconfig gave it."""
    if module is None or isinstance(module, FakeCast):
        return module
    return next((child for child in module._modules.values() if isinstance(child, FakeCast)), None)


def describe_cast(cast: FakeCast) -> str:
    """A cast as tables print it: `FakeCast(dtype=torch.float16, min_val=-65504.0, max_val=65504.0)`."""
    return f"FakeCast({cast.extra_repr()})"
