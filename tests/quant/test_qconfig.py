from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from profiler import quant
from profiler.errors import ConfigError, PrepareError
from profiler.quant import (
    FakeQuantize,
    FixedScaleObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    MSEObserver,
    QConfig,
    get_default_calib_qconfig,
    get_default_qat_out_qconfig,
    get_default_qat_qconfig,
    get_default_qconfig,
)
from profiler.quant.qconfig import propagate_qconfig

# name: (purpose, activation dtype or None, activation observer)
TABLE: dict[str, tuple[str, str | None, type[nn.Module] | None]] = {
    "default_qat_8bit_fake_quant_qconfig": ("qat", "qint8", MovingAverageMinMaxObserver),
    "default_calib_8bit_fake_quant_qconfig": ("calib", "qint8", MSEObserver),
    "default_qat_16bit_fake_quant_qconfig": ("qat", "qint16", MovingAverageMinMaxObserver),
    "default_calib_16bit_fake_quant_qconfig": ("calib", "qint16", MSEObserver),
    "default_qat_8bit_weight_16bit_act_fake_quant_qconfig": ("qat", "qint16", MovingAverageMinMaxObserver),
    "default_calib_8bit_weight_16bit_act_fake_quant_qconfig": ("calib", "qint16", MSEObserver),
    "default_qat_8bit_weight_32bit_out_fake_quant_qconfig": ("qat", None, None),
    "default_calib_8bit_weight_32bit_out_fake_quant_qconfig": ("calib", None, None),
    "default_qat_out_8bit_fake_quant_qconfig": ("qat", None, None),
    "default_calib_out_8bit_fake_quant_qconfig": ("calib", None, None),
    "default_qat_8bit_fixed_act_fake_quant_qconfig": ("qat", "qint8", MovingAverageMinMaxObserver),
}


@pytest.mark.parametrize("name", TABLE)
def test_qconfig_ready_made_follows_the_table(name: str) -> None:
    purpose, dtype, observer = TABLE[name]
    qconfig: Any = getattr(quant, name)
    assert qconfig.purpose == purpose
    weight = qconfig.weight()
    assert (weight.dtype, weight.ch_axis) == ("qint8", 0)
    assert type(weight.activation_post_process) is MovingAveragePerChannelMinMaxObserver
    assert "torch.per_channel_symmetric" in repr(weight)
    assert qconfig.activation_dtype == (dtype or "torch.float32")
    if dtype is None:
        assert qconfig.activation is None
        return
    activation = qconfig.activation()
    assert (activation.dtype, activation.ch_axis) == (dtype, -1)
    assert type(activation.activation_post_process) is observer
    assert activation.activation_post_process.plain_mean == (purpose == "calib")


@pytest.mark.parametrize("name", TABLE)
def test_qconfig_called_is_itself(name: str) -> None:
    qconfig = getattr(quant, name)
    assert qconfig() is qconfig


def test_qconfig_fixed_activation_freezes_calibrated_scales() -> None:
    activation = quant.default_qat_8bit_fixed_act_fake_quant_qconfig.activation()
    assert activation.activation_post_process.averaging_constant == 0


@pytest.mark.parametrize("role", ["activation", "weight", "input"])
def test_qconfig_instance_instead_of_factory_is_refused(role: str) -> None:
    with pytest.raises(ConfigError, match=rf"qconfig {role} is FakeQuantize, an instance; give a factory"):
        QConfig(**{role: FakeQuantize()})


def test_get_default_qconfig_takes_observers_by_key_class_and_kwargs() -> None:
    by_key = get_default_qconfig(activation_observer="percentile", activation_qkwargs={"percentile": 99.0})
    assert by_key.activation().activation_post_process.percentile == 99.0
    fixed = get_default_qconfig(activation_qkwargs={"observer": FixedScaleObserver, "scale": 0.5, "dtype": "qint16"})
    assert float(fixed.activation().scale) == 0.5
    assert fixed.activation_dtype == "qint16"
    named = get_default_qconfig(activation_qkwargs={"observer": "mse"})
    assert type(named.activation().activation_post_process) is MSEObserver
    assert get_default_qconfig(activation_fake_quant=None).activation is None


def test_get_default_functions_pass_their_dtypes_on() -> None:
    assert get_default_qat_qconfig(dtype="qint16", weight_dtype="qint4").weight().dtype == "qint4"
    assert get_default_qat_out_qconfig(dtype="qint4").weight().dtype == "qint4"
    assert get_default_qat_out_qconfig().activation is None
    assert get_default_calib_qconfig(calib_qkwargs={"observer": "percentile"}).activation().dtype == "qint8"


@pytest.mark.parametrize("kind", ["lsqq", "fake"])
def test_get_default_qconfig_unknown_kind_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"'{kind}' is unknown"):
        get_default_qconfig(activation_fake_quant=kind)


def test_propagate_qconfig_child_inherits_own_wins_none_counts() -> None:
    outer, inner = get_default_qat_qconfig(), get_default_qat_qconfig(dtype="qint16")
    model: Any = nn.Sequential(nn.Sequential(nn.Linear(1, 1)), nn.Sequential(nn.Linear(1, 1)), nn.Linear(1, 1))
    model.qconfig, model[1].qconfig, model[2].qconfig = outer, inner, None
    propagate_qconfig(model)
    assert model[0][0].qconfig is outer
    assert model[1][0].qconfig is inner
    assert model[2].qconfig is None


def test_propagate_qconfig_wrong_type_names_the_module() -> None:
    model: Any = nn.Linear(1, 1)
    model.qconfig = "int8"
    with pytest.raises(ConfigError, match=r"Linear: qconfig is str; expected None or a profiler.quant QConfig"):
        propagate_qconfig(model)


def test_weight_axis_that_cannot_be_requantized_is_an_error() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 3, 1))
    model.qconfig = get_default_qconfig(weight_qkwargs={"ch_axis": 1})
    quant.set_march("bayes")
    with pytest.raises(PrepareError, match="ch_axis is 1; expected 0"):
        quant.prepare_qat(model)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"activation_observer": "clip"}, r"activation fake quant .*ClipObserver.*missing.*xmin.*activation_qkwargs"),
        ({"activation_observer": "fixed_scale"}, r"FixedScaleObserver.*missing.*scale"),
        ({"weight_observer": "fixed_scale"}, r"weight fake quant .*missing.*scale.*weight_qkwargs"),
        ({"activation_observer": "percentile", "activation_qkwargs": {"percentile": 200}}, r"200"),
        ({"activation_qkwargs": {"no_such": 1}}, r"no_such"),
    ],
)
def test_arguments_of_the_observer_are_checked_at_once(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        get_default_qconfig(**arguments)
