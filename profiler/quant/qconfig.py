"""QConfig: which fake quant an op's output and weight get; the ready-made ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from profiler.errors import ConfigError
from profiler.quant.affine import qinfo, qint8, qint16
from profiler.quant.fake_quant import FakeQuantFactory, FakeQuantize
from profiler.quant.learned_fake_quant import PACTFakeQuantize, _LearnableFakeQuantize
from profiler.quant.observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    MSEObserver,
    ObserverBase,
    observer_class,
)
from profiler.quant.switches import FakeCast, FakeCastFactory

_KINDS: dict[str, type[FakeQuantize]] = {
    "fake_quant": FakeQuantize,
    "lsq": _LearnableFakeQuantize,
    "pact": PACTFakeQuantize,
}
Purpose = Literal["calib", "qat", ""]


@dataclass(frozen=True)
class QConfig:
    """Factories for one op: `activation` (its output; None leaves it unquantized), `weight`, `input`.

    `input` is for the automatic stub that FX puts before the op; None: as `activation`.
    A qconfig is a value and callable: `q()` is `q`. Prepare writes into its own copy what was asked for
    (`fallback_from`) and why the target got something else (`fallback_reason`). With `is_final` prepare does not change
    the dtype of the output, also where the target lacks it. An activation of `FakeCast.with_args(...)` goes to `cast`:
    the output stays float, and holds what the lower float type holds.

    Raises:
        ConfigError: an instance was given instead of a factory (`FakeQuantize.with_args(...)`).
    """

    activation: Any = None
    weight: Any = None
    input: Any = None
    purpose: Purpose = ""
    fallback_from: str = ""
    fallback_reason: str = ""
    is_final: bool = False
    cast: FakeCastFactory | None = None

    def __post_init__(self) -> None:
        if isinstance(self.activation, FakeCastFactory):
            object.__setattr__(self, "cast", self.activation)
            object.__setattr__(self, "activation", None)
        elif self.activation is not None:
            object.__setattr__(self, "cast", None)
        for role in ("activation", "weight", "input"):
            given = getattr(self, role)
            if isinstance(given, nn.Module) or not (given is None or callable(given)):
                raise ConfigError(
                    f"qconfig {role} is {type(given).__name__}, an instance; give a factory such as "
                    "FakeQuantize.with_args(observer=MinMaxObserver), so that every op gets its own"
                )

    def __call__(self) -> QConfig:
        return self

    @property
    def activation_dtype(self) -> str:
        """Requested dtype of the output: a quantized dtype name, or torch.float32 for a high-precision output."""
        if self.activation is None:
            return "torch.float32" if self.cast is None else str(self.cast().dtype)
        keywords = getattr(self.activation, "keywords", {})
        return str(keywords.get("dtype", qint8))


def get_default_qconfig(
    activation_fake_quant: str | None = "fake_quant",
    weight_fake_quant: str | None = "fake_quant",
    activation_observer: str | type[ObserverBase] = "min_max",
    weight_observer: str | type[ObserverBase] = "min_max",
    activation_qkwargs: dict[str, Any] | None = None,
    weight_qkwargs: dict[str, Any] | None = None,
    purpose: Purpose = "",
) -> QConfig:
    """A qconfig from the names of its parts; builds each fake quant once, so that wrong arguments are told here.

    Args:
        activation_fake_quant: "fake_quant", "lsq", "pact", "fake_cast" (float16), or None for an unquantized
            (high-precision) output.
        weight_fake_quant: the same for weights; None is for ops without one.
        activation_observer: observer key (see `OBSERVERS`) or class.
        weight_observer: the same for weights.
        activation_qkwargs: arguments of the activation fake quant (`observer`, `dtype`, `scale`, ...).
        weight_qkwargs: arguments of the weight fake quant; per channel on axis 0 unless they say otherwise.
        purpose: "calib" or "qat" for ready-made ones.

    Raises:
        ConfigError: unknown fake-quant kind or observer, or arguments that are missing or cannot be used.
    """
    if activation_fake_quant == "fake_cast":
        activation: Any = FakeCast.with_args(**(activation_qkwargs or {}))
        activation()
    else:
        defaults = {"observer": observer_class(activation_observer)}
        activation = _factory("activation", activation_fake_quant, defaults, activation_qkwargs)
    weight_defaults = {
        "observer": observer_class(weight_observer),
        "dtype": qint8,
        "ch_axis": 0,
        "qscheme": torch.per_channel_symmetric,
    }
    weight = _factory("weight", weight_fake_quant, weight_defaults, weight_qkwargs)
    return QConfig(activation=activation, weight=weight, purpose=purpose)


def get_default_qat_qconfig(
    dtype: str = qint8,
    weight_dtype: str = qint8,
    activation_fake_quant: str | None = "fake_quant",
    weight_fake_quant: str | None = "fake_quant",
    activation_qkwargs: dict[str, Any] | None = None,
    weight_qkwargs: dict[str, Any] | None = None,
    backend: str = "",
) -> QConfig:
    """The usual QAT qconfig: moving min/max, activations per tensor, weights per channel."""
    return get_default_qconfig(
        activation_fake_quant,
        weight_fake_quant,
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
        {"dtype": dtype, **(activation_qkwargs or {})},
        {"dtype": weight_dtype, **(weight_qkwargs or {})},
        purpose="qat",
    )


def get_default_qat_out_qconfig(
    dtype: str = qint8,
    weight_fake_quant: str | None = "fake_quant",
    weight_qkwargs: dict[str, Any] | None = None,
    backend: str = "",
) -> QConfig:
    """QAT qconfig of an output op: its activation stays at high precision. `dtype` is the weight's."""
    return get_default_qat_qconfig(
        weight_dtype=dtype,
        activation_fake_quant=None,
        weight_fake_quant=weight_fake_quant,
        weight_qkwargs=weight_qkwargs,
    )


def get_default_calib_qconfig(
    dtype: str = qint8, calib_qkwargs: dict[str, Any] | None = None, backend: str = ""
) -> QConfig:
    """The usual calibration qconfig: activations by mse over all batches, weights min/max per channel.

    The mean of the batches' extremes would cut off what the largest batch holds, which int16 shows first.
    """
    qkwargs = {"dtype": dtype, "plain_mean": True, **(calib_qkwargs or {})}
    return get_default_qconfig(
        activation_observer="mse",
        weight_observer=MovingAveragePerChannelMinMaxObserver,
        activation_qkwargs=qkwargs,
        purpose="calib",
    )


def get_qconfig(
    observer: type[ObserverBase] = HistogramObserver,
    in_dtype: str = qint8,
    weight_dtype: str = qint8,
    out_dtype: str = qint8,
    fix_scale: bool = False,
) -> QConfig:
    """A qconfig from an observer and dtypes.

    Args:
        observer: MinMaxObserver, MSEObserver or HistogramObserver, for activations; weights take min/max.
        in_dtype: dtype of an automatic stub before the op.
        weight_dtype: dtype of the weight.
        out_dtype: dtype of the output.
        fix_scale: activation scales are no longer updated once known.

    Raises:
        ConfigError: another observer, or an unknown dtype.
    """
    if observer not in (MinMaxObserver, MSEObserver, HistogramObserver):
        raise ConfigError(f"observer {observer!r}: get_qconfig takes MinMaxObserver, MSEObserver or HistogramObserver")
    settings: dict[str, Any] = {"observer": observer, "averaging_constant": 0.0 if fix_scale else 0.01}
    made = get_default_qconfig(
        weight_observer=MovingAveragePerChannelMinMaxObserver,
        activation_qkwargs={**settings, "dtype": qinfo(out_dtype).name},
        weight_qkwargs={"dtype": qinfo(weight_dtype).name},
    )
    return replace(made, input=FakeQuantize.with_args(**settings, dtype=qinfo(in_dtype).name))


def high_precision_output(qconfig: QConfig) -> QConfig:
    """The same qconfig with an unquantized output."""
    return QConfig(activation=None, weight=qconfig.weight, input=qconfig.input, purpose=qconfig.purpose)


def with_dtype(factory: Any, dtype: str) -> Any:
    """A fake-quant factory for another dtype; a fixed scale changes with it, so that the range stays the same.

    Source:
        Threshold mode: scale = threshold / (-quant_min).
    """
    if not hasattr(factory, "with_args"):
        return factory
    given = getattr(factory, "keywords", {})
    if "scale" not in given:
        return factory.with_args(dtype=dtype)
    ratio = qinfo(str(given.get("dtype", qint8))).quant_min / qinfo(dtype).quant_min
    return factory.with_args(dtype=dtype, scale=given["scale"] * ratio)


def propagate_qconfig(module: nn.Module, inherited: QConfig | None = None) -> None:
    """Give every module its qconfig: its own attribute if it has one (None counts), else its parent's.

    Raises:
        ConfigError: a `qconfig` attribute is neither None nor a QConfig.
    """
    if "qconfig" in module.__dict__:
        inherited = check_qconfig_value(module.__dict__["qconfig"], type(module).__name__)
    module.__dict__["qconfig"] = inherited
    for child in module.children():
        if not isinstance(child, FakeQuantize):
            propagate_qconfig(child, inherited)


def check_qconfig_value(value: Any, where: str) -> QConfig | None:
    """The value as a QConfig or None.

    Raises:
        ConfigError: it is something else.
    """
    if value is None or isinstance(value, QConfig):
        return value
    raise ConfigError(f"{where}: qconfig is {type(value).__name__}; expected None or a profiler.quant QConfig")


def _factory(
    role: str, kind: str | None, defaults: dict[str, Any], given: dict[str, Any] | None
) -> FakeQuantFactory | None:
    if kind is None:
        return None
    if kind not in _KINDS:
        raise ConfigError(f"fake quant kind {kind!r} is unknown; use one of {', '.join(_KINDS)}, or None")
    kwargs = {**defaults, **(given or {})}
    if isinstance(kwargs["observer"], str):
        kwargs["observer"] = observer_class(kwargs["observer"])
    factory = _KINDS[kind].with_args(**kwargs)
    try:
        factory()
    except (TypeError, ValueError) as error:
        observer = getattr(kwargs["observer"], "__name__", str(kwargs["observer"]))
        raise ConfigError(f"{role} fake quant {kind!r} with {observer}: {error}; see {role}_qkwargs") from error
    return factory


default_qat_8bit_fake_quant_qconfig = get_default_qat_qconfig()
default_calib_8bit_fake_quant_qconfig = get_default_calib_qconfig()
default_qat_16bit_fake_quant_qconfig = get_default_qat_qconfig(dtype=qint16)
default_calib_16bit_fake_quant_qconfig = get_default_calib_qconfig(dtype=qint16)
default_qat_8bit_weight_16bit_act_fake_quant_qconfig = default_qat_16bit_fake_quant_qconfig
default_calib_8bit_weight_16bit_act_fake_quant_qconfig = default_calib_16bit_fake_quant_qconfig
default_qat_out_8bit_fake_quant_qconfig = high_precision_output(default_qat_8bit_fake_quant_qconfig)
default_calib_out_8bit_fake_quant_qconfig = high_precision_output(default_calib_8bit_fake_quant_qconfig)
default_qat_8bit_weight_32bit_out_fake_quant_qconfig = default_qat_out_8bit_fake_quant_qconfig
default_calib_8bit_weight_32bit_out_fake_quant_qconfig = default_calib_out_8bit_fake_quant_qconfig
default_qat_8bit_fixed_act_fake_quant_qconfig = get_default_qat_qconfig(activation_qkwargs={"averaging_constant": 0})
default_qat_8bit_lsq_quant_qconfig = get_default_qat_qconfig(
    activation_fake_quant="lsq",
    weight_fake_quant="lsq",
    activation_qkwargs={"use_grad_scaling": True, "averaging_constant": 1.0},
    weight_qkwargs={"use_grad_scaling": True, "averaging_constant": 1.0},
)
