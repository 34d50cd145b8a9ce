from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch

from profiler.errors import ConfigError, NotCalibratedError, StateError
from profiler.quant import FakeQuantize, FixedScaleObserver, MinMaxObserver, MovingAveragePerChannelMinMaxObserver
from profiler.quant.policy import set_state_policy, state_policy


def fake_quant(**kwargs: Any) -> FakeQuantize:
    return FakeQuantize(**{"observer": MinMaxObserver, **kwargs})


def test_fake_quantize_new_is_uncalibrated_with_scale_one_and_both_on() -> None:
    fq = fake_quant()
    assert (fq.scale.tolist(), fq.zero_point.tolist()) == ([1.0], [0])
    assert not fq.is_calibrated
    assert (int(fq.fake_quant_enabled), int(fq.observer_enabled)) == (1, 1)


def test_fake_quantize_training_observes_and_rounds() -> None:
    fq = fake_quant()
    y = fq(torch.tensor([-1.0, 0.3, 0.9]))
    assert float(fq.scale) == pytest.approx(1 / 127.5)
    assert torch.equal((y / fq.scale).round() * fq.scale, y)
    assert fq.is_calibrated


def test_fake_quantize_observer_on_only_passes_the_input_itself() -> None:
    fq = fake_quant()
    fq.disable_fake_quant()
    x = torch.randn(5)
    assert fq(x) is x
    assert fq.is_calibrated


def test_fake_quantize_eval_does_not_observe() -> None:
    fq = fake_quant()
    fq(torch.ones(3))
    fq.eval()
    fq(torch.ones(3) * 100)
    assert float(fq.scale) == pytest.approx(1 / 127.5)


def test_fake_quantize_observing_in_eval_names_the_third_mistake() -> None:
    fq = fake_quant().eval()
    fq.disable_fake_quant()
    fq.name = "layer.act"
    with pytest.raises(StateError, match=r"layer.act: observing is on .* in eval.*CALIBRATION\) after it"):
        fq(torch.ones(3))


def test_fake_quantize_rounding_uncalibrated_names_the_second_mistake() -> None:
    fq = fake_quant().eval()
    with pytest.raises(NotCalibratedError, match="no scale is known and none can be observed"):
        fq(torch.ones(3))


def test_fake_quantize_policy_warn_goes_on_with_scale_one(caplog: pytest.LogCaptureFixture) -> None:
    fq = fake_quant().eval()
    with state_policy("warn"):
        assert fq(torch.tensor([0.4, 0.6])).tolist() == [0, 1]
    assert "no scale is known" in caplog.text
    with pytest.raises(NotCalibratedError):
        fq(torch.ones(1))


def test_set_state_policy_unknown_is_refused() -> None:
    with pytest.raises(ConfigError, match="'ignore' is unknown; use one of error, warn"):
        set_state_policy("ignore")


def test_fake_quantize_true_scale_of_one_is_legal() -> None:
    fq = fake_quant().eval()
    fq.set_qparams(1.0)
    assert fq.is_calibrated
    assert fq(torch.tensor([0.4, 0.6])).tolist() == [0, 1]


@pytest.mark.parametrize(("scale", "zero_point"), [(0.0, None), (-1.0, 0), (1.0, 5), (float("nan"), None)])
def test_set_qparams_bad_values_are_refused(scale: float, zero_point: int | None) -> None:
    with pytest.raises(ConfigError, match="expected scale > 0, zero_point 0"):
        fake_quant().set_qparams(scale, zero_point)


def test_set_qparams_bounds_follow_the_scale() -> None:
    fq = fake_quant(averaging_constant=0.5)
    fq.set_qparams(0.1)
    fq(torch.tensor([-12.75 * 3, 12.75 * 3]))
    assert float(fq.scale) == pytest.approx(0.2)


def test_fake_quantize_fixed_observer_keeps_its_scale() -> None:
    fq = FakeQuantize(observer=FixedScaleObserver, scale=1 / 128)
    fq(torch.ones(5) * 50)
    assert float(fq.scale) == 1 / 128


def test_fake_quantize_per_channel_uses_each_channels_scale() -> None:
    fq = FakeQuantize(observer=MovingAveragePerChannelMinMaxObserver, channel_len=2)
    assert fq.scale.tolist() == [1, 1]
    y = fq(torch.tensor([[1.0, 0.5], [100.0, 50.0]]))
    assert fq.scale.tolist() == pytest.approx([1 / 127.5, 100 / 127.5])
    assert torch.allclose(y[0] * 100, y[1])


@pytest.mark.parametrize("kwargs", [{"saturate": False}, {"in_place": True}])
def test_fake_quantize_unsupported_argument_is_refused(kwargs: dict[str, bool]) -> None:
    with pytest.raises(ConfigError, match="is not supported"):
        fake_quant(**kwargs)


def test_fake_quantize_repr_has_the_form_users_read() -> None:
    text = repr(fake_quant()).replace("\n", " ")
    for part in (
        "FakeQuantize(",
        "fake_quant_enabled=tensor([1], dtype=torch.uint8)", "observer_enabled=tensor([1], dtype=torch.uint8)",
        "quant_min=-128, quant_max=127, dtype=qint8, qscheme=torch.per_tensor_symmetric, ch_axis=-1",
        "scale=tensor([1.]), zero_point=tensor([0])",
        "(activation_post_process): MinMaxObserver(min_val=tensor([]), max_val=tensor([]))",
    ):  # fmt: skip
        assert part in text


def test_fake_quantize_state_dict_has_the_shared_keys() -> None:
    keys = {"scale", "zero_point", "fake_quant_enabled", "observer_enabled"}
    keys |= {"activation_post_process.min_val", "activation_post_process.max_val"}
    assert set(fake_quant().state_dict()) == keys


def test_fake_quantize_survives_deepcopy_and_pickle() -> None:
    fq = fake_quant()
    fq(torch.randn(10))
    buffer = io.BytesIO()
    torch.save(fq, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(fq), torch.load(buffer, weights_only=False)):
        assert torch.equal(other.scale, fq.scale)
        x = torch.randn(10)
        assert torch.equal(other.eval()(x), fq.eval()(x))


def test_with_args_factories_make_independent_instances() -> None:
    factory = FakeQuantize.with_args(observer=MinMaxObserver).with_args(dtype="qint16")
    first, second = factory(), factory()
    first(torch.ones(2))
    assert first.dtype == "qint16"
    assert not second.is_calibrated
