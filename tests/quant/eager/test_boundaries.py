from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.errors import UnsupportedOpError
from profiler.quant import (
    DeQuantStub,
    MinMaxObserver,
    QTensor,
    QuantStub,
    convert,
    default_calib_8bit_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
    get_default_calib_qconfig,
    get_default_qat_out_qconfig,
    prepare_qat,
)
from tests.models import Stubbed
from tests.quant.stages import calibrate, eager

MIN_MAX = get_default_calib_qconfig(calib_qkwargs={"observer": MinMaxObserver})
_SEED = torch.Generator().manual_seed(3)
BATCHES = [torch.rand(2, 3, 8, 8, generator=_SEED) for _ in range(3)]


class Between(Stubbed):
    """`middle` between two convs; says what the second one got."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)

    def middle(self, x: Any) -> Any:
        raise NotImplementedError

    def body(self, x: Any) -> Any:
        y = self.middle(self.first(x))
        self.kind = type(y)
        return self.second(y)


class SoftSign(Between):
    def middle(self, x: Any) -> Any:
        return torch.special.i0e(x)


class FoldModule(Between):
    def __init__(self) -> None:
        super().__init__()
        self.unfold, self.fold = nn.Unfold(2, stride=2), nn.Fold((8, 8), 2, stride=2)

    def middle(self, x: Any) -> Any:
        return self.fold(self.unfold(x))


class LocalNorm(Between):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LocalResponseNorm(2)

    def middle(self, x: Any) -> Any:
        return self.norm(x)


class InPlaceFunction(Between):
    def middle(self, x: Any) -> Any:
        x.sinc_()
        return x


class SetItem(Between):
    def middle(self, x: Any) -> Any:
        x[:, 0] = 0.25
        return x


class FilledPad(Between):
    def middle(self, x: Any) -> Any:
        return F.pad(x, (1, 1, 1, 1), value=0.5)


class PairOfFloats(Between):
    def middle(self, x: Any) -> Any:
        u, v = torch.linalg.qr(x)
        self.scales = (u.q_scale(), v.q_scale()) if isinstance(u, QTensor) else ()
        return v


NETS = [SoftSign, FoldModule, LocalNorm, InPlaceFunction, SetItem, FilledPad, PairOfFloats]


def settled(cls: type[nn.Module]) -> Any:
    model: Any = cls().eval()
    for conv in (model.first, model.second):
        nn.init.orthogonal_(conv.weight)
    return model


@pytest.mark.parametrize("cls", NETS)
def test_boundary_float_op_between_quantized_ops_never_raises_and_is_quantized_again(cls: type[nn.Module]) -> None:
    model = settled(cls)
    prepared = eager(model, BATCHES, MIN_MAX)
    expected, actual = model(BATCHES[0]), prepared(BATCHES[0])
    assert prepared.kind is QTensor
    assert float((actual - expected).square().mean() / expected.square().mean()) < 2e-3
    converted = convert(prepared)
    integer = converted(BATCHES[0])
    assert converted.kind is QTensor
    assert float((integer - actual).abs().max()) <= 3 * float(prepared.second.activation_post_process.scale)


@pytest.mark.parametrize(("cls", "op"), [
    (SoftSign, "special_i0e_0"), (FoldModule, "fold"), (LocalNorm, "norm"),
])  # fmt: skip
def test_boundary_op_is_named_in_the_effects_once(cls: type[nn.Module], op: str) -> None:
    prepared = eager(settled(cls), BATCHES, MIN_MAX)
    (effect,) = [e for e in prepared.quant_effects if e.op in {op, op.removeprefix("special_")}]
    assert effect.requested == "qint8"
    assert effect.actual == "torch.float32"
    assert "runs in float between automatic boundaries" in effect.reason


@pytest.mark.parametrize("cls", NETS)
def test_boundary_checkpoint_loads_strictly_before_the_first_forward(cls: type[nn.Module]) -> None:
    model = settled(cls)
    prepared = eager(model, BATCHES, MIN_MAX)
    fresh: Any = prepare_qat(model)
    fresh.load_state_dict(prepared.state_dict())
    assert fresh.state_dict().keys() == prepared.state_dict().keys()
    converted = convert(fresh.eval())
    assert torch.equal(converted(BATCHES[0]), convert(prepared)(BATCHES[0]))


@pytest.mark.parametrize("cls", [SoftSign, FoldModule, PairOfFloats])
def test_boundary_model_copies_and_pickles_in_both_stages(cls: type[nn.Module]) -> None:
    prepared = eager(settled(cls), BATCHES, MIN_MAX)
    for stage in (prepared, convert(prepared)):
        for twin in (copy.deepcopy(stage), pickle.loads(pickle.dumps(stage))):
            assert torch.equal(twin(BATCHES[0]), stage(BATCHES[0]))


def test_boundary_every_float_result_has_its_own_scale() -> None:
    prepared = eager(settled(PairOfFloats), BATCHES)
    prepared(BATCHES[0])
    assert prepared.scales[0] != prepared.scales[1]
    keys = [k for k in prepared.state_dict() if k.startswith("_generated_") and k.endswith(".scale")]
    assert len(keys) == 2


def test_boundary_gradient_reaches_what_lies_before() -> None:
    prepared = prepare_qat(_with(FoldModule(), default_qat_8bit_fake_quant_qconfig))
    prepared.train()
    prepared(BATCHES[0]).square().sum().backward()
    assert float(prepared.first.weight.grad.abs().sum()) > 0


def _with(model: Any, qconfig: Any) -> Any:
    model.qconfig = qconfig
    return model


class Decides(Between):
    def middle(self, x: Any) -> Any:
        self.decision = torch.signbit(x)
        return x


def test_boundary_boolean_results_stay_plain_and_have_no_scale() -> None:
    prepared = eager(settled(Decides), BATCHES)
    prepared(BATCHES[0])
    assert type(prepared.decision) is Tensor
    assert prepared.decision.dtype is torch.bool
    assert not [k for k in prepared.state_dict() if k.startswith("_generated_signbit")]
    fresh = prepare_qat(_with(Decides(), default_calib_8bit_fake_quant_qconfig))
    fresh.load_state_dict(prepared.state_dict())
    decisions = []
    for converted in (convert(prepared), convert(fresh.eval())):
        converted(BATCHES[0])
        decisions.append(converted.decision)
    assert torch.equal(*decisions)


def test_boundary_under_an_output_qconfig_results_stay_plain() -> None:
    class Out(Stubbed):
        def __init__(self) -> None:
            super().__init__()
            self.tail = Tail()
            self.tail.qconfig = get_default_qat_out_qconfig()

        def body(self, x: Any) -> Any:
            return self.tail(x)

    class Tail(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.sinc(x)

    prepared = eager(Out(), BATCHES)
    assert torch.allclose(prepared(BATCHES[0]), torch.sinc(BATCHES[0]), atol=0.02)
    assert torch.allclose(convert(prepared)(BATCHES[0]), prepared(BATCHES[0]))


class UserFloat(nn.Module):
    """A part that the user keeps in float, with no stub before it."""

    def __init__(self, op: Any) -> None:
        super().__init__()
        self.quant, self.conv, self.part = QuantStub(), nn.Conv2d(3, 3, 1), op
        self.again, self.last, self.dequant = QuantStub(), nn.Conv2d(3, 2, 1), DeQuantStub()
        self.part.qconfig = None

    def forward(self, x: Any) -> Any:
        return self.dequant(self.last(self.again(self.part(self.conv(self.quant(x))))))


class Functions(nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.sinc(x) + x


@pytest.mark.parametrize(("part", "function"), [(nn.Conv2d(3, 3, 1), "conv2d"), (Functions(), "sinc")])
def test_r4_unsupported_op_on_qtensor_names_op_module_and_line(part: nn.Module, function: str) -> None:
    prepared = prepare_qat(_with(UserFloat(part), default_qat_8bit_fake_quant_qconfig))
    with pytest.raises(
        UnsupportedOpError, match=rf"function {function} is not .* in module part, called at .*\.py:\d+"
    ):
        prepared(BATCHES[0])


@pytest.mark.parametrize("part", [nn.Conv2d(3, 3, 1), Functions(), nn.Sequential(nn.ReLU(), nn.MaxPool2d(1))])
def test_hybrid_eager_quantized_values_enter_the_users_float_part(part: nn.Module) -> None:
    model = _with(UserFloat(part), default_calib_8bit_fake_quant_qconfig).eval()
    prepared = calibrate(prepare_qat(model, hybrid=True), BATCHES)
    seen: list[type] = []
    prepared.again.register_forward_pre_hook(lambda m, args: seen.append(type(args[0])))
    expected, actual = model(BATCHES[0]), prepared(BATCHES[0])
    assert seen == [Tensor]
    assert float((actual - expected).square().mean() / expected.square().mean()) < 1e-3
    integer = convert(prepared)(BATCHES[0])
    assert float((integer - actual).abs().max()) <= 2 * float(prepared.last.activation_post_process.scale)


def test_boundary_first_forward_through_a_submodule_joins_the_state() -> None:
    model = _with(SoftSign(), default_calib_8bit_fake_quant_qconfig).eval()
    outer = nn.Sequential(model)
    outer.qconfig = default_calib_8bit_fake_quant_qconfig
    prepared: Any = prepare_qat(outer)
    calibrate(prepared, BATCHES)
    assert prepared[0](BATCHES[0]).shape == (2, 2, 8, 8)


def test_module_on_both_sides_of_a_quant_stub_is_named_when_its_integer_form_gets_floats() -> None:
    class Both(Stubbed):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Any) -> Any:
            return self.dequant(self.conv(self.quant(self.conv(x))))

    converted = convert(eager(Both().eval(), BATCHES, MIN_MAX))
    with pytest.raises(UnsupportedOpError, match=r"in module conv: .* called both before and behind a QuantStub"):
        converted(BATCHES[0])
