"""Writes through names that share memory: right, or refused where they would be wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from profiler.errors import UnsupportedOpError
from profiler.quant import convert, default_calib_8bit_fake_quant_qconfig
from profiler.quant.fx.planning import from_dicts
from profiler.quant.record.prepare import prepare_recorded
from tests.models import Stubbed, images, make
from tests.quant.stages import calibrate, eager


class Writes(Stubbed):
    """Hands a convolution's result to code that writes into it."""

    write: Callable[[Tensor], Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.last(type(self).write(self.conv(x)))


def _view_is_scaled(x: Tensor) -> Tensor:
    x[:, :2].mul_(0.5)
    return x


def _view_of_what_is_scaled(x: Tensor) -> Tensor:
    view = x[:, :2]
    x.mul_(0.5)
    return torch.cat([view, view[:, :1]], 1)


def _flat_view_is_moved(x: Tensor) -> Tensor:
    flat = x.view(x.shape[0], -1)
    flat += 1
    return x


def _chunk_is_written(x: Tensor) -> Tensor:
    first, second = x.chunk(3, 1)[:2]
    first.mul_(second.sigmoid())
    return x


def _channel_is_copied(x: Tensor) -> Tensor:
    x.select(1, 0).copy_(x.select(1, 1) * 2)
    return x


def _slice_is_scaled(x: Tensor) -> Tensor:
    x[:, :2] *= 0.5
    return x


def _larger_values_are_set(x: Tensor) -> Tensor:
    x[:, 0] = x[:, 1] * 3
    return x


def _larger_number_is_set(x: Tensor) -> Tensor:
    x[x > 0.3] = 5.0
    return x


def _zeros_are_set(x: Tensor) -> Tensor:
    x[:, 0] = 0
    return x


def _whole_is_scaled(x: Tensor) -> Tensor:
    y = x
    y += 1
    return x


REFUSED = [_view_is_scaled, _view_of_what_is_scaled, _flat_view_is_moved, _chunk_is_written, _channel_is_copied]
RIGHT = [_slice_is_scaled, _larger_values_are_set, _larger_number_is_set, _zeros_are_set, _whole_is_scaled]


def writes(write: Callable[[Tensor], Tensor]) -> nn.Module:
    return make(type("Net", (Writes,), {"write": staticmethod(write)}))


def assert_right(net: nn.Module, prepared: nn.Module) -> None:
    converted = convert(prepared)
    with torch.no_grad():
        for batch in images():
            x, x_fq, x_q = net(batch.clone()), prepared(batch.clone()), converted(batch.clone())
            assert float((x_fq - x).norm()) < 0.03 * float(x.norm())
            assert float((x_q - x_fq).norm()) < 0.02 * float(x.norm())


@pytest.mark.parametrize("write", RIGHT, ids=lambda f: f.__name__.strip("_"))
def test_eager_write_is_right_in_all_stages(write: Callable[[Tensor], Tensor]) -> None:
    net = writes(write)
    assert_right(net, eager(net, images()))


@pytest.mark.parametrize("write", REFUSED, ids=lambda f: f.__name__.strip("_"))
def test_eager_write_that_another_name_would_miss_is_refused_with_both_lines(write: Callable[..., Tensor]) -> None:
    with pytest.raises(UnsupportedOpError, match=r"is read at .*overwritten at .*test_aliases.py.*different scales"):
        eager(writes(write), images())


@pytest.mark.parametrize("write", RIGHT + REFUSED, ids=lambda f: f.__name__.strip("_"))
def test_recorded_write_is_right_in_all_stages(write: Callable[[Tensor], Tensor]) -> None:
    net, qconfigs = writes(write), from_dicts({"": default_calib_8bit_fake_quant_qconfig})
    prepared = prepare_recorded(net, [((batch,), {}) for batch in images()], qconfigs)
    assert_right(net, calibrate(prepared.eval(), images()))


def _prepared_on_another_way(write: Callable[[Tensor], Tensor]) -> tuple[nn.Module, nn.Module]:
    net = writes(lambda x: write(x) if x.shape[0] == 1 else x)
    qconfigs = from_dicts({"": default_calib_8bit_fake_quant_qconfig})
    prepared = prepare_recorded(net, [((images()[0],), {})], qconfigs)
    return net, calibrate(prepared.eval(), [*images(), images()[0][:1]])


@pytest.mark.parametrize("write", [*REFUSED[:2], *REFUSED[3:]], ids=lambda f: f.__name__.strip("_"))
def test_recorded_write_on_another_way_than_the_recorded_is_right(write: Callable[[Tensor], Tensor]) -> None:
    """Names in one memory become real values together, in a converted model too."""
    net, prepared = _prepared_on_another_way(write)
    with torch.no_grad():
        x = images()[1][:1]
        expected, fake, integer = net(x), prepared(x), convert(prepared)(x)
    assert float((fake - expected).norm()) < 0.05 * float(expected.norm())
    assert float((integer - fake).norm()) < 0.02 * float(expected.norm())


def test_recorded_write_into_a_view_that_codes_cannot_be_is_refused() -> None:
    _, prepared = _prepared_on_another_way(_flat_view_is_moved)
    with pytest.raises(UnsupportedOpError, match=r"test_aliases.py.* on a way that was not recorded"):
        convert(prepared)(images()[1][:1])
