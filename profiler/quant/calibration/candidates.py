"""The scales that several observers give each activation, from one pass over the float values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from profiler.errors import ConfigError, ModelError
from profiler.quant.batches import Batch
from profiler.quant.calibration.keeping import use_state
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.observers import OBSERVERS, MinMaxObserver, ObserverBase, PercentileObserver, observer_class
from profiler.quant.states import FakeQuantState, named_fake_quants

MIN_MAX = "min_max"
_NEED_ARGUMENTS = ("clip", "fixed_scale")
ObserverChoice = tuple[str, type[ObserverBase], dict[str, Any]]


def observer_choices(
    observer_list: Iterable[str | type[ObserverBase]], percentile_list: Sequence[float] | None
) -> list[ObserverChoice]:
    """(label, class, arguments) of the observers to try; min_max is always the first.

    Raises:
        ConfigError: an observer is unknown or needs arguments, or a percentile is not in 0..100.
    """
    choices: dict[str, ObserverChoice] = {MIN_MAX: (MIN_MAX, MinMaxObserver, {})}
    for given in observer_list:
        cls = observer_class(given)
        label = given if isinstance(given, str) else next((k for k, v in OBSERVERS.items() if v is cls), cls.__name__)
        if label in _NEED_ARGUMENTS:
            raise ConfigError(f"auto_calibrate: observer {label!r} needs arguments; set it in the op's qconfig instead")
        if cls is PercentileObserver and percentile_list is not None:
            for percentile in percentile_list:
                name = f"percentile {percentile:g}"
                choices[name] = (name, cls, {"percentile": percentile})
        else:
            choices[label] = (label, cls, {})
    for _, cls, arguments in choices.values():
        cls(**arguments)
    return list(choices.values())


def is_free(name: str, fake_quant: FakeQuantize) -> bool:
    """Whether an activation's scale may be chosen: neither given nor frozen (by freeze_part, averaging_constant 0)."""
    observer = fake_quant.activation_post_process
    is_weight = name.rpartition(".")[2] == "weight_fake_quant"
    is_settled = observer.averaging_constant == 0 and observer.is_calibrated
    return not (is_weight or observer.is_fixed or is_settled or fake_quant.is_frozen)


def observe_candidates(
    model: nn.Module, batches: list[Batch], choices: list[ObserverChoice]
) -> dict[str, dict[str, Tensor]]:
    """Scales by observer label for each free activation that ran, in the order of their first run.

    The model's own observers watch too, in CALIBRATION: they are what recurrent layers collect their steps for.
    """
    use_state(model, FakeQuantState.CALIBRATION)
    watched: dict[str, dict[str, ObserverBase]] = {}
    with _watching(model, choices, watched):
        for batch in batches:
            batch.run(model)
    return {name: _scales(observers) for name, observers in watched.items()}


def _scales(observers: dict[str, ObserverBase]) -> dict[str, Tensor]:
    return {label: observer.calculate_qparams()[0].reshape(-1).clone() for label, observer in observers.items()}


@contextmanager
def _watching(
    model: nn.Module, choices: list[ObserverChoice], watched: dict[str, dict[str, ObserverBase]]
) -> Iterator[None]:
    """Hooks on the free fake quants: their candidates observe what they get."""
    handles = []
    for name, fake_quant in named_fake_quants(model):
        if is_free(name, fake_quant):

            def observe(module: nn.Module, args: Any, name: str = name) -> None:
                assert isinstance(module, FakeQuantize)
                if args[0].numel():
                    _feed(watched.setdefault(name, _observers(module, choices)), args[0], name)

            handles.append(fake_quant.register_forward_pre_hook(observe))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _feed(observers: dict[str, ObserverBase], x: Tensor, name: str) -> None:
    for observer in observers.values():
        try:
            observer(x)
        except ModelError as error:
            raise ModelError(f"{name}: {error}") from None


def _observers(fake_quant: FakeQuantize, choices: list[ObserverChoice]) -> dict[str, ObserverBase]:
    own = fake_quant.activation_post_process
    shared: dict[str, Any] = {
        "ch_axis": own.ch_axis, "dtype": own.dtype, "qscheme": own.qscheme, "quant_min": own.quant_min,
        "quant_max": own.quant_max, "power_of_two": own.power_of_two, "plain_mean": True,
        "factory_kwargs": {"device": fake_quant.scale.device},
    }  # fmt: skip
    usable = (choice for choice in choices if own.ch_axis < 0 or choice[1].supports_per_channel)
    return {label: cls(**shared, **arguments) for label, cls, arguments in usable}
