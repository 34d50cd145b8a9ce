"""What convolution, linear and stand-alone batch norm share: fused epilogue, fake-quant and integer execution."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from profiler.errors import PrepareError
from profiler.quant.affine import QInfo, Requantization, along_axis, qinfo, quantize, round_half_even
from profiler.quant.blocks import is_plain_eager
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.integer_kernels import Geometry
from profiler.quant.modules import QuantOp, adopt, make_activation, place_like, quantized_output, require_codes
from profiler.quant.ops.epilogue import Epilogue, expands_to, in_accumulator_steps, in_steps
from profiler.quant.ops.fold import batch_norm_affine, fold_batch_norm
from profiler.quant.ops.integer_run import FastPlan, Target, fast_plan, run
from profiler.quant.qconfig import QConfig
from profiler.quant.qtensor import QTensor, stand_for_real, to_float, to_plain
from profiler.quant.requantize import carrier_dtype, requantize, warn_of_overflow
from profiler.quant.tracing import not_traced

_FQ = TypeVar("_FQ", bound="FakeQuantGemm")
_BIAS_LIMIT = 2.0**30
_KEPT_PLANS = 16  # a module that is called at more places with scales of their own makes plans anew


class Gemm(QuantOp):
    """Base of all forms of a weighted op. Subclasses also extend the torch.nn class that they stand for."""

    base_name = ""
    epilogue: Epilogue = Epilogue()
    fused_names: tuple[str, ...] = ()
    takes_floats = False  # in a recorded model: on a path that nobody recorded it runs on real values
    weight: Any
    bias: Any

    def gemm(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The product itself, on plain tensors of one dtype."""
        raise NotImplementedError

    def out_axis(self, y: Tensor) -> int:
        """Axis of the output channels in an output tensor."""
        raise NotImplementedError

    def rows(self, weight: Tensor) -> Tensor:
        """The weight with its output channels first, `[C, ...]`."""
        return weight

    def from_rows(self, rows: Tensor) -> Tensor:
        """The inverse of `rows`."""
        return rows

    def weight_axis(self) -> int:
        """Axis of the output channels in the weight; -1 where they have no axis of their own."""
        return 0

    @property
    def live_norm(self) -> Any:
        """The batch norm that QATMode.WithBN keeps as child `bn` until convert, or None."""
        return self._modules.get("bn")

    def float_product(self, x: Tensor) -> Tensor:
        """The product alone on real values."""
        return self.gemm(to_float(x), self.weight, self.bias)

    def in_float(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """The whole group on real values, its output not rounded."""
        return self.epilogue.apply(self.float_product(x), to_float(other))

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Fused op at the place of a FloatFunctional: `x` is the weighted op's input, `y` the other operand."""
        result: Tensor = self(x, y)
        return result

    def _get_name(self) -> str:
        return self.epilogue.class_name(self.base_name)


class FusedGemm(Gemm):
    """Float form of a fused group: batch norm folded into the weight, add and activation behind it."""

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Float result of the whole group."""
        y = self.gemm(x, self.weight, self.bias)
        return self.epilogue.apply(y if self.live_norm is None else self.live_norm(y), other)


class FakeQuantGemm(Gemm):
    """Weights and output rounded to codes and back; the bias stays float."""

    weight_fake_quant: FakeQuantize
    activation_post_process: FakeQuantize | None
    integer_class: type[IntegerGemm]

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """Float weight and bias of the product; a live batch norm is folded in."""
        if self.live_norm is None:
            return self.weight, self.bias
        rows, bias = fold_batch_norm(self.rows(self.weight), self.bias, self.live_norm)
        return self.from_rows(rows), bias

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Fake-quantized result as a QTensor; a plain tensor where the output has high precision."""
        if self.takes_floats and not isinstance(x, QTensor):
            return self.in_float(x, other)
        weight, bias = self.weight_and_bias()
        weight = self.weight_fake_quant.quantize_weight(weight)
        if self.live_norm is not None and self.live_norm.training:
            y = self._normalised(to_plain(x), weight)
        else:
            step = self._accumulator_step(x)
            y = self.gemm(to_plain(x), weight, bias if step is None else in_steps(bias, step))
            if step is not None and self.epilogue.has_add:
                other = in_steps(to_plain(other), along_axis(step, y.dim(), self.out_axis(y)))
        return self._finish(y, to_plain(other))

    def float_product(self, x: Tensor) -> Tensor:
        """The product alone on real values, with rounded weights: nothing added, activated or rounded behind it."""
        weight, bias = self.weight_and_bias()
        return self.gemm(to_float(x), self.weight_fake_quant.quantize_weight(weight), bias)

    def _accumulator_step(self, x: Tensor) -> Tensor | None:
        """Outside training, what one step of the integer form's accumulator is worth: 0-d or `[C]`, float64."""
        weight_fake_quant = self.weight_fake_quant
        if self.training or not weight_fake_quant.is_rounding or not isinstance(x, QTensor) or x.ch_axis >= 0:
            return None
        return x.scale.detach().double() * weight_fake_quant.scale.detach().double()

    def _finish(self, y: Tensor, other: Any) -> Tensor:
        """Epilogue and fake quant of a product; written over the product where nobody else can see it."""
        output = self.activation_post_process
        if output is None or not output.only_rounds(y) or (self.epilogue.has_add and other is None):
            return quantized_output(self.epilogue.apply(y, other), output)
        y = y + other if self.epilogue.has_add else y
        rounded = output.round_in_place(y, *self.epilogue.bounds)
        return QTensor.wrap(rounded, output.tensor_scale, output.dtype)

    def _normalised(self, x: Tensor, weight: Tensor) -> Tensor:
        """Product with a folded, fake-quantized weight, scaled back for the live batch norm in training mode."""
        y = self.gemm(x, weight, None)
        axis = self.out_axis(y)
        gain = batch_norm_affine(self.live_norm)[0].to(y.dtype)
        y = y / along_axis(torch.where(gain == 0, 1.0, gain), y.dim(), axis)
        normalised: Tensor = self.live_norm(y if self.bias is None else y + along_axis(self.bias, y.dim(), axis))
        return normalised

    def to_integer(self) -> IntegerGemm:
        """The integer form."""
        weight, bias = self.weight_and_bias()
        weight_fake_quant = self.weight_fake_quant
        if not weight_fake_quant.is_calibrated:
            weight_fake_quant.calibrate_on(weight)
        module = adopt(self.integer_class, self)
        module.op_name = weight_fake_quant.name.rpartition(".")[0]
        for name in ("weight_fake_quant", "activation_post_process", "bn"):
            module._modules.pop(name, None)
        module._parameters.clear()
        module._buffers.clear()
        codes = quantize(weight.detach(), weight_fake_quant.scale, weight_fake_quant.info, weight_fake_quant.ch_axis)
        scale = weight_fake_quant.scale.detach().clone()
        dtype = weight_fake_quant.dtype
        module.take(codes, scale.expand(self.rows(codes).shape[0]), dtype, bias, self.activation_post_process)
        return module


def make_fake_quant(cls: type[_FQ], module: nn.Module, qconfig: QConfig) -> _FQ:
    """Fake-quant form of a float (or fused) module.

    Raises:
        PrepareError: the qconfig has no weight fake quant, or one along another axis than the output channels'.
    """
    if qconfig.weight is None:
        raise PrepareError(f"{cls.base_name}: the qconfig has no weight fake quant; give one, or set qconfig = None")
    new = adopt(cls, module)
    axis = new.weight_axis()
    new.weight_fake_quant = place_like(_make_weight(qconfig.weight, axis), module)
    if new.weight_fake_quant.ch_axis not in (-1, axis):
        raise PrepareError(
            f"{cls.base_name}: the weight's ch_axis is {new.weight_fake_quant.ch_axis}; expected {axis} (output "
            "channels) or -1 (one scale), since only these can be requantized: change weight_qkwargs"
        )
    new.activation_post_process = make_activation(qconfig, module)
    return new


def _make_weight(factory: Any, axis: int) -> FakeQuantize:
    """The weight's fake quant along the output channels: qconfigs say axis 0, a transposed convolution has them on 1.

    Where the output channels have no axis of their own (-1) the weight gets one scale.
    """
    made: FakeQuantize = factory()
    if made.ch_axis != 0 or axis == 0 or not hasattr(factory, "with_args"):
        return made
    scheme = {"qscheme": torch.per_tensor_symmetric} if axis < 0 else {}
    moved: FakeQuantize = factory.with_args(ch_axis=axis, **scheme)()
    return moved


@dataclass(frozen=True)
class _Plan:
    """What one pair of input scales needs: computed once, then reused by every forward."""

    weight: Tensor
    bias: Tensor | None
    acc_scale: Tensor
    carrier: torch.dtype
    other_multiplier: Tensor | None = None
    fast: FastPlan | None = None


@dataclass
class _Plans:
    """The newest plans by scales and dtypes, all made from the tensors that `follow` saw last."""

    by_scale: dict[tuple[Any, ...], _Plan] = field(default_factory=dict)
    sources: tuple[Tensor | None, ...] = ()
    states: tuple[tuple[int, int] | None, ...] = ()

    def follow(self, *sources: Tensor | None) -> None:
        """Forget plans that were made from other tensors, or from these before somebody wrote into them."""
        states = tuple(None if t is None else (0 if t.is_inference() else t._version, t.data_ptr()) for t in sources)
        if states != self.states or any(a is not b for a, b in zip(sources, self.sources, strict=True)):
            self.by_scale, self.sources, self.states = {}, sources, states

    def keep(self, key: tuple[Any, ...], plan: _Plan) -> None:
        """Add a plan; the oldest goes where there are too many."""
        self.by_scale[key] = plan
        while len(self.by_scale) > _KEPT_PLANS:
            self.by_scale.pop(next(iter(self.by_scale)), None)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Plans:
        return _Plans()

    def __reduce__(self) -> Any:
        return (_Plans, ())


class IntegerGemm(Gemm):
    """Integer form: int8 weights, exact integer accumulator, one requantization.

    The products run in a float type that carries integers exactly; the bound that makes it exact is computed from the
    actual weights and picks float32 (below 2**24) or float64 (`requantize.carrier_dtype`).
    """

    out_scale: Tensor | None
    out_info: QInfo | None
    weight_scale: Tensor
    weight_dtype: str
    op_name: str = ""

    def take(
        self, codes: Tensor, weight_scale: Tensor, weight_dtype: str, bias: Tensor | None, output: FakeQuantize | None
    ) -> None:
        """Set weight codes `[C, ...]` with scale `[C]` and dtype, the float bias `[C]`, the output's quantization."""
        self._plans = _Plans()
        self.weight_dtype = weight_dtype
        self.register_buffer("weight", stand_for_real(codes))
        self.register_buffer("weight_scale", weight_scale.contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.register_buffer("out_scale", None if output is None else output.tensor_scale.detach().clone())
        self.out_info = None if output is None else output.info
        self.out_dtype = "torch.float32" if output is None else output.dtype

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Codes in, codes out (a QTensor); float32 `acc * s_x * s_w[c]` where the output has high precision."""
        if self.takes_floats and not isinstance(x, QTensor):
            return self.in_float(x, other)
        x = require_codes(x, self._get_name())
        other = require_codes(other, self._get_name()) if self.epilogue.has_add else None
        plan = self._plan(x, other)
        if plan.fast is not None and is_plain_eager(x.plain) and x.numel():
            result = self._run_fast(x, plan.fast, other)
            if result is not None:
                return result
        return self.finish(self.gemm(x.plain.to(plan.carrier), plan.weight, plan.bias), plan, other)

    def float_product(self, x: Tensor) -> Tensor:
        """The product alone on real values, with the weights' real values."""
        rows = self.rows(self.weight)
        weight = self.from_rows(rows * along_axis(self.weight_scale, rows.dim(), 0))
        return self.gemm(to_float(x), weight, self.bias)

    def _run_fast(self, x: QTensor, plan: FastPlan, other: QTensor | None) -> Tensor | None:
        """The same integers from the 8-bit kernels; codes of images come channels last.

        None where an added operand does not expand to the product's shape.
        """
        image, beside = self.as_image(x.plain), None
        if other is not None:
            nothing = x.plain.new_empty(()).expand(plan.output_shape(image))
            shape = self.from_image(nothing, x.plain).shape  # in the op's own rank
            if not expands_to(other.shape, shape):
                return None
            beside = self.as_image(other.plain.expand(shape))
        result = self.from_image(run(plan, image, beside), x.plain)
        return result if self.out_scale is None else QTensor.wrap(result, self.out_scale, self.out_dtype)

    def geometry(self) -> Geometry | None:
        """The op as a 2-d convolution of `as_image`, or None where it is none."""
        return None

    def as_image(self, x: Tensor) -> Tensor:
        """An input (or output) as `[N, C, H, W]`."""
        raise NotImplementedError

    def from_image(self, y: Tensor, x: Tensor) -> Tensor:
        """An output image in the form that the input `x` asks for."""
        raise NotImplementedError

    def finish(self, acc: Tensor, plan: _Plan, other: Tensor | None) -> Tensor:
        """From the accumulator with its bias (integers of any dtype) to the output: add, activation, requantization."""
        if plan.other_multiplier is not None:
            multiplier = along_axis(plan.other_multiplier, acc.dim(), self.out_axis(acc))
            acc = acc + in_accumulator_steps(other, multiplier).to(acc.dtype)
        if self.epilogue.activation:
            acc = acc.clamp_min_(0)
        return self._output(acc, plan, self.out_axis(acc))  # the operand may have brought more axes

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight={self.weight_dtype[1:]}{list(self.weight.shape)}, out={self.out_dtype}"

    def _output(self, acc: Tensor, plan: _Plan, axis: int) -> Tensor:
        limit = None
        if self.out_scale is None or self.out_info is None:
            if self.epilogue.activation == "relu6":
                limit = along_axis(round_half_even(6.0 / plan.acc_scale).to(acc.dtype), acc.dim(), axis)
                acc = torch.minimum(acc, limit)
            return acc.to(torch.float32) * along_axis(plan.acc_scale, acc.dim(), axis)
        if self.epilogue.activation == "relu6":
            limit = round_half_even(6.0 / self.out_scale)
        codes = requantize(acc, plan.acc_scale / self.out_scale, self.out_info, axis, limit=limit)
        return QTensor.wrap(codes, self.out_scale, self.out_dtype)

    @not_traced
    def _plan(self, x: QTensor, other: QTensor | None) -> _Plan:
        self._plans.follow(self.weight, self.bias, self.weight_scale, self.out_scale)
        of_other = () if other is None else (float(other.scale), other.qdtype)
        key = (float(x.scale), x.qdtype, *of_other, str(x.device))
        plan = self._plans.by_scale.get(key)
        if plan is None:
            plan = self._make_plan(x, other)
            self._plans.keep(key, plan)
        return plan

    @torch.no_grad()
    def _make_plan(self, x: QTensor, other: QTensor | None) -> _Plan:
        """Bias in accumulator steps, scale of the accumulator, and the carrier that computes exactly."""
        weight, weight_scale = self._weight_that_fits_bias(x.scale)
        acc_scale = x.scale * weight_scale
        bias_q = None if self.bias is None else round_half_even(self.bias.double() / acc_scale.double())
        rows = self.rows(weight.double().abs())
        flat = rows.reshape(rows.shape[0], -1).sum(1) * -x.info.quant_min
        bound = flat if bias_q is None else flat + bias_q.abs()
        multiplier = None
        if other is not None:
            multiplier = other.scale.double() / acc_scale.double()
            bound = bound + multiplier * -other.info.quant_min
        largest = float(bound.max()) if bound.numel() else 0.0
        warn_of_overflow(self.op_name or self._get_name(), largest)
        carrier = carrier_dtype(largest)
        room = 0.0 if other is None or multiplier is None else float(multiplier.max()) * -other.info.quant_min + 1
        to_sums = None if multiplier is None else multiplier.to(torch.float32)
        is_default = self.out_info is None or self.out_info.requantization == Requantization()
        geometry = self.geometry() if is_default else None
        target = Target(acc_scale, to_sums, self.epilogue.activation, self.out_scale, self.out_info)
        return _Plan(
            fast=fast_plan(geometry, self.rows(weight), bias_q, x.plain.dtype, room, target),
            weight=weight.to(carrier),
            bias=None if bias_q is None else bias_q.to(carrier),
            acc_scale=acc_scale,
            carrier=carrier,
            other_multiplier=to_sums,
        )

    def _weight_that_fits_bias(self, x_scale: Tensor) -> tuple[Tensor, Tensor]:
        """Weight codes and scales; channels so small that their bias would overflow int32 get a coarser scale."""
        if self.bias is None:
            return self.weight, self.weight_scale
        least = self.bias.abs().float() / (x_scale * _BIAS_LIMIT)
        if bool((least <= self.weight_scale).all()):
            return self.weight, self.weight_scale
        coarser = torch.maximum(self.weight_scale, least)
        real = self.rows(self.weight).double() * along_axis(self.weight_scale.double(), self.weight.dim(), 0)
        return self.from_rows(quantize(real, coarser.double(), qinfo(self.weight_dtype), 0)), coarser

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move the module; moved codes are new tensors."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        stand_for_real(self.weight)
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        """Load, and forget the plans that were made from the former weights."""
        super()._load_from_state_dict(*args)
        self._plans = _Plans()
