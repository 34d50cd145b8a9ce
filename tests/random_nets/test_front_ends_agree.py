"""Small nets, found by random ones, in which the two front ends once differed: every bit must be equal."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.quant import convert, convert_fx, default_calib_8bit_fake_quant_qconfig, prepare_qat_fx
from profiler.quant.fx.planning import from_dicts
from profiler.quant.record.prepare import prepare_recorded
from tests.models import images, make
from tests.quant.stages import calibrate
from tests.random_nets.stages import same_bits
from tests.random_nets.test_random_nets import scales_of


class Parts(nn.Module):
    """Modules that the nets below use, two of them under two names."""

    def __init__(self, run: Callable[[Parts, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
        self.shift = nn.Parameter(torch.linspace(-1, 1, 8))
        self.second_name, self.bn_again = self.conv, self.bn
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def _second_name_is_called(net: Parts, x: Tensor) -> Tensor:
    return net.conv(x) + net.second_name(torch.tanh(net.other(x)))


def _fused_under_second_names(net: Parts, x: Tensor) -> Tensor:
    return F.relu(net.bn_again(net.second_name(x)) + x)


def _unread_call_of_a_norm(net: Parts, x: Tensor) -> Tensor:
    y = net.bn(net.conv(x)) + x
    net.bn(net.other(y * 3))
    return y


def _unread_reader_between_conv_and_norm(net: Parts, x: Tensor) -> Tensor:
    y = net.conv(x)
    torch.tanh(y)
    return net.bn(y)


def _relu_in_place(net: Parts, x: Tensor) -> Tensor:
    y = net.conv(x) * 1.0
    torch.relu_(y)
    return y + net.shift


def _masked_fill_in_place(net: Parts, x: Tensor) -> Tensor:
    y = net.conv(x) * 1.0
    y.masked_fill_(x > 0.5, -0.25)
    return torch.cat([y, x], 1)


def _squeeze_in_place(net: Parts, x: Tensor) -> Tensor:
    y = net.conv(x).unsqueeze(0) * 0.5
    y.squeeze_(0)
    return net.other(y)


def _constant_is_added(net: Parts, x: Tensor) -> Tensor:
    return net.conv(x) + torch.ones(8) + net.other(x)


def _cast_to_the_type_of_another(net: Parts, x: Tensor) -> Tensor:
    y = net.conv(x)
    return torch.cat([torch.softmax(y.float(), -1).type_as(y), y.double().float()], 1)


NETS = [
    _constant_is_added,
    _cast_to_the_type_of_another,
    _second_name_is_called,
    _fused_under_second_names,
    _unread_call_of_a_norm,
    _unread_reader_between_conv_and_norm,
    _relu_in_place,
    _masked_fill_in_place,
    _squeeze_in_place,
]


@pytest.mark.parametrize("run", NETS, ids=lambda run: run.__name__.strip("_"))
def test_net_by_fx_and_record_is_the_same(run: Callable[[Parts, Tensor], Tensor]) -> None:
    net, batches = make(lambda: Parts(run)).eval(), images()
    qconfigs = {"": default_calib_8bit_fake_quant_qconfig}
    traced = prepare_qat_fx(net, qconfigs, example_inputs=batches[:1])
    recorded = prepare_recorded(net, [((batch,), {}) for batch in batches], from_dicts(qconfigs))
    for prepared in (traced, recorded):
        calibrate(prepared.eval(), batches)
    scales = scales_of(recorded)
    assert scales_of(traced) == {name: scales[name] for name in scales_of(traced)}
    assert recorded.second_name is recorded.conv  # a name that keeps the float module would run in float
    assert recorded.bn_again is recorded.bn
    for batch in batches:
        assert same_bits(traced(batch), recorded(batch))
        assert same_bits(convert_fx(traced)(batch), convert(recorded)(batch))


class Pair:
    """A result class of the user's."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.first, self.second = first, second


class Keeps(nn.Module):
    """Returns a convolution's result and what a norm makes of it, in an object."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()

    def forward(self, x: Tensor) -> Pair:
        y = self.conv(x)
        return Pair(y, self.act(self.bn(y)))


class CallsForward(Keeps):
    """Calls modules, and later their `forward` alone."""

    def forward(self, x: Tensor) -> Pair:
        y = self.act(self.bn(self.conv(x)))
        return Pair(self.bn.forward(y - 0.5), self.act.forward(self.conv.forward(x)))


class FillsThenWrites(Keeps):
    """A value that an in-place function gave is written through a view and read again."""

    def forward(self, x: Tensor) -> Pair:
        y = self.conv(x) * 0.5
        y.masked_fill_(y < -0.2, -0.2)
        y.select(1, 0).copy_(x.select(1, 1))
        return Pair(y.cumsum(-1), self.act(y))


CLASSES = [Keeps, CallsForward, FillsThenWrites]


@pytest.mark.parametrize("cls", CLASSES)
def test_recorded_net_gives_what_is_kept_called_by_forward_or_written(cls: type[Keeps]) -> None:
    net, batches = make(cls), images()
    qconfigs = from_dicts({"": default_calib_8bit_fake_quant_qconfig})
    prepared = calibrate(prepare_recorded(net, [((batch,), {}) for batch in batches], qconfigs).eval(), batches)
    for model in (prepared, convert(prepared)):
        for batch in batches:
            result, expected = model(batch), net(batch)
            for x, y in ((expected.first, result.first), (expected.second, result.second)):
                assert float((y - x).norm()) < 0.05 * float(x.norm())
