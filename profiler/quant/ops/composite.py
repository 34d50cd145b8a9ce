"""What operators with quantized operators inside share: inner qconfigs, children, conversion."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from profiler.quant.affine import fake_quantize, qint8, qint16, quantize
from profiler.quant.consistency import ConsistencyStrategy
from profiler.quant.fake_quant import FakeQuantFactory, FakeQuantize
from profiler.quant.march import get_march
from profiler.quant.modules import QuantOp, adopt
from profiler.quant.observers import FixedScaleObserver, MinMaxObserver, MovingAverageMinMaxObserver
from profiler.quant.ops.functional import IntegerFunction, make_fake_quant_function
from profiler.quant.ops.gemm import make_fake_quant
from profiler.quant.ops.linear import FakeQuantLinear
from profiler.quant.qconfig import QConfig
from profiler.quant.qtensor import QTensor
from profiler.quant.states import named_fake_quants
from profiler.quant.stubs import FakeQuantStub
from profiler.quant.target import needs_powers_of_two

_COMMON = ("averaging_constant", "plain_mean", "power_of_two")


class Composite(QuantOp):
    """One op to the outside, made of fake-quant or integer modules inside.

    Its forward calls children and moves values, and nothing else: the same forward serves both forms.

    Attributes:
        stands_for: the float class that it replaces, for those who look up its operator.
    """

    stands_for: type[nn.Module]
    narrow: QConfig
    wide: QConfig

    def _get_name(self) -> str:
        return self.stands_for.__name__

    def add_function(self, name: str, function: str, qconfig: QConfig, like: nn.Module, **bound: Any) -> None:
        """A child that runs one function; `like` gives device and training mode."""
        self.add_module(name, make_fake_quant_function(like, function, bound, "", qconfig))

    def add_linear(self, name: str, weight: Tensor, bias: Tensor | None, qconfig: QConfig, like: nn.Module) -> None:
        """A child Linear with copies of a weight `[out, in]` and bias `[out]`."""
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
        if bias is not None:
            linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        linear.train(like.training)
        self.add_module(name, make_fake_quant(FakeQuantLinear, linear, qconfig))

    def convert_children(self) -> None:
        """Replace every child by its integer form."""
        for name, child in list(self._modules.items()):
            to_integer: Any = getattr(child, "to_integer", None)
            if to_integer is not None:
                self._modules[name] = to_integer()


class FakeQuantComposite(Composite):
    """Fake-quant form.

    Attributes:
        integer_class: class of the integer form.
        output: path of the child that writes the result, or "".
    """

    integer_class: type[Composite]
    output = ""

    @property
    def activation_post_process(self) -> FakeQuantize | None:
        """The fake quant of the result."""
        found = getattr(self.get_submodule(self.output), "activation_post_process", None) if self.output else None
        return found if isinstance(found, FakeQuantize) else None

    def to_integer(self) -> Composite:
        """The integer form."""
        module = adopt(self.integer_class, self)
        module.convert_children()
        return module

    def add_stub(self, name: str) -> None:
        """A child that quantizes a float operand; it may join late, and then takes part in its siblings' state."""
        stub = FakeQuantStub()
        stub.activation_post_process = self.narrow.activation()
        self.add_module(name, stub)

    def join_siblings(self, name: str) -> None:
        """Give a late child the state, journal, device and training mode of the children that were there before."""
        sibling = next(fq for path, fq in named_fake_quants(self) if not path.startswith(f"{name}."))
        prefix = sibling.name.removesuffix(next(p for p, fq in named_fake_quants(self) if fq is sibling))
        for path, fake_quant in named_fake_quants(self.get_submodule(name)):
            fake_quant.name, fake_quant.journal = f"{prefix}{name}.{path}", sibling.journal
            fake_quant.enable_observer(sibling.is_observer_on)
            fake_quant.enable_fake_quant(sibling.is_fake_quant_on)
            fake_quant.train(sibling.training)
            fake_quant.to(sibling.scale.device)


def narrow_qconfig(qconfig: QConfig) -> QConfig:
    """The qconfig of ops inside that carry many values: dtype and observer of the whole, int8 where it has none.

    A fixed scale belongs to the result alone: inside, min/max is observed instead. Where the target needs powers of
    two, the scales inside are such too.
    """
    given = qconfig.activation
    is_usable = isinstance(given, FakeQuantFactory) and given.keywords.get("observer") is not FixedScaleObserver
    if given is not None and is_usable:
        return qconfig
    dtype = qint8 if given is None else qconfig.activation_dtype
    is_simple = needs_powers_of_two(get_march(), ConsistencyStrategy.get_consistency_level())
    activation = FakeQuantize.with_args(observer=MovingAverageMinMaxObserver, dtype=dtype, power_of_two=is_simple)
    return QConfig(activation, qconfig.weight, qconfig.input, qconfig.purpose)


def wide_qconfig(qconfig: QConfig) -> QConfig:
    """The qconfig of ops inside whose precision decides: int16 with min/max; int8 on marches without int16."""
    narrow = narrow_qconfig(qconfig)
    march = get_march()
    if narrow.activation_dtype == qint16 or (march is not None and not march.has_int16_activations):
        return narrow
    kept = {key: value for key, value in narrow.activation.keywords.items() if key in _COMMON}
    activation = FakeQuantize.with_args(observer=MinMaxObserver, dtype=qint16, **kept)
    return QConfig(activation, qconfig.weight, qconfig.input, qconfig.purpose)


def times_constant(x: Tensor, factor: float) -> Tensor:
    """`x * factor` for a positive number: the codes stay, their scale is multiplied."""
    if not isinstance(x, QTensor):
        return x * factor
    data = x.plain if x.holds_codes else x.plain * factor
    return QTensor.wrap(data, x.scale * factor, x.qdtype, x.ch_axis, x.is_rounded)


def on_scale_of(child: Any, x: Tensor) -> Tensor:
    """A float tensor rounded to the scale that a child function writes; a quantized one stays as it is."""
    if isinstance(x, QTensor):
        return x
    if isinstance(child, IntegerFunction):
        assert child.out_scale is not None
        assert child.out_info is not None
        return QTensor.wrap(quantize(x, child.out_scale, child.out_info), child.out_scale, child.out_info.name)
    fake_quant: FakeQuantize = child.activation_post_process
    rounded = fake_quantize(x, fake_quant.scale, fake_quant.info) if fake_quant.is_rounding else x
    scale, is_rounded = fake_quant.tensor_scale, fake_quant.is_rounding
    return QTensor.wrap(rounded, scale, fake_quant.dtype, is_rounded=is_rounded)
