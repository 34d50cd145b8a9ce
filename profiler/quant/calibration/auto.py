"""auto_calibrate: the observer of each activation by the error that it leaves at the outputs."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from profiler.errors import ConfigError
from profiler.quant.batches import Batch
from profiler.quant.calibration.batches import take_batches
from profiler.quant.calibration.candidates import MIN_MAX, is_free, observe_candidates, observer_choices
from profiler.quant.calibration.keeping import state_kept, use_state
from profiler.quant.calibration.output_error import OutputError
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.naming import op_name
from profiler.quant.observers import ObserverBase
from profiler.quant.states import FakeQuantState, named_fake_quants

_LOGGER = logging.getLogger(__name__)
_SAME_SCALE = 1e-3
Scales = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class CalibrationChoice:
    """What auto_calibrate found.

    Attributes:
        observers: path of each activation fake quant -> label of the observer whose scale it has now, forward order.
        error: L2 error at the outputs with these scales.
        min_max_error: the same with min_max everywhere; never smaller than `error`.
        num_forwards: forwards that the search took.
    """

    observers: dict[str, str]
    error: float
    min_max_error: float
    num_forwards: int


def auto_calibrate(
    calib_model: nn.Module,
    batches: Any,
    num_batches: int = 10,
    batch_process_func: Callable[[Any], Any] | None = None,
    observer_list: Sequence[str | type[ObserverBase]] = ("percentile", "mse", "kl", "min_max"),
    percentile_list: Sequence[float] | None = None,
) -> CalibrationChoice:
    """Give every activation the scale of the observer that leaves the least L2 error at the outputs.

    One pass over the float values gives all candidate scales. The search starts from the best of "the same observer
    everywhere" and goes through the activations in forward order: each of the other scales is tried, all earlier
    activations being quantized as chosen, and kept if the error at the outputs becomes smaller. So the result is never
    worse than min_max everywhere on these batches; that is measured once more at the end.

    The error is the L2 distance at the DeQuantStubs of the model (its outputs, where there are none) from the same
    model with fake quant off. With N activations, K observers and B batches the search takes at most
    `B * (N * (K - 1) + K + 4) + 1` forwards; a try ends at the batch where it is no longer better. Given and frozen
    scales stay. States and training flags come back; after an error the scales do too.

    Args:
        calib_model: prepared model, calibrated or not; its scales change in place.
        batches: a batch (tensor, tuple, dict), a list of batches, or a loader.
        num_batches: batches to take of a loader.
        batch_process_func: makes a batch of what the list or loader holds, for example `lambda pair: pair[0]`.
        observer_list: observers to try, as keys or classes; min_max is always among them.
        percentile_list: percentiles to try in the place of the observer's own 99.99, each a candidate.

    Returns:
        The choices, which are also logged.

    Raises:
        ConfigError: an observer is unknown or needs arguments, a percentile or num_batches is out of range.
        DataError: no batches.
        ModelError: values are NaN or Inf, or the outputs cannot be compared.
        PrepareError: the model is not prepared.
    """
    choices = observer_choices(observer_list, percentile_list)
    items = take_batches(batches, calib_model, num_batches, batch_process_func)
    with state_kept(calib_model, "auto_calibrate"), _scales_kept_on_error(calib_model):
        outputs = OutputError(calib_model, items)
        scales = observe_candidates(calib_model, items, choices)
        if not scales:
            raise ConfigError("auto_calibrate: no activation is free to choose; all scales are given or frozen")
        search = _Search(calib_model, outputs, scales)
        search.start_uniform([label for label, _, _ in choices])
        search.improve()
        search.confirm()
        _follow_cuts(calib_model, items[0], scales)
        return CalibrationChoice(
            {name: search.chosen[name] for name in scales},
            search.error, search.min_max_error, outputs.num_forwards + len(items) + 1,
        )  # fmt: skip


class _Search:
    """The scales that the activations have, and the error that they leave."""

    def __init__(self, model: nn.Module, outputs: OutputError, scales: Scales) -> None:
        self.outputs, self.scales = outputs, scales
        self.fake_quants = dict(named_fake_quants(model))
        self.chosen: dict[str, str] = {}
        self.error = self.min_max_error = 0.0

    def start_uniform(self, labels: list[str]) -> None:
        """Begin with the observer that is best when it is used everywhere; min_max is the first of the labels."""
        self._use_everywhere(MIN_MAX)
        self.error = self.min_max_error = self.outputs.measure()
        _LOGGER.info("auto_calibrate: L2 error at the outputs with %s everywhere: %.6g", MIN_MAX, self.error)
        best = MIN_MAX
        for label in labels[1:]:
            self._use_everywhere(label)
            error = self.outputs.measure(self.error)
            if error < self.error:
                best, self.error = label, error
                _LOGGER.info("auto_calibrate: with %s everywhere: %.6g", label, error)
        self._use_everywhere(best)

    def improve(self) -> None:
        """Try the other scales of each activation, in forward order."""
        for number, name in enumerate(self.scales, start=1):
            before = self.error
            self._try_others(name)
            _LOGGER.info(
                "auto_calibrate: %d/%d %s: %s, error %.6g -> %.6g",
                number, len(self.scales), op_name(name.removesuffix(".activation_post_process")), self.chosen[name],
                before, self.error,
            )  # fmt: skip

    def confirm(self) -> None:
        """Measure once more: a forward that is not the same twice must not leave the model worse than min_max."""
        measured = self.outputs.measure()
        if measured > self.min_max_error:
            _LOGGER.warning("auto_calibrate: the model's outputs differ from run to run; min_max is used everywhere")
            self._use_everywhere(MIN_MAX)
            measured = self.min_max_error
        self.error = measured

    def _try_others(self, name: str) -> None:
        tried = [self.scales[name][self.chosen[name]]]
        for label, scale in self.scales[name].items():
            if any(torch.allclose(scale, other, rtol=_SAME_SCALE, atol=0) for other in tried):
                continue
            tried.append(scale)
            former = self.chosen[name]
            self._use(name, label)
            error = self.outputs.measure(self.error)
            if error < self.error:
                self.error = error
            else:
                self._use(name, former)

    def _use_everywhere(self, label: str) -> None:
        for name, found in self.scales.items():
            self._use(name, label if label in found else MIN_MAX)

    def _use(self, name: str, label: str) -> None:
        self.chosen[name] = label
        self.fake_quants[name].set_qparams(self.scales[name][label])


def _follow_cuts(model: nn.Module, batch: Batch, scales: Scales) -> None:
    """Stubs between quantized parts have the scale of what they get: they see one batch with the chosen scales."""
    use_state(model, FakeQuantState._FLOAT)
    for name, fake_quant in named_fake_quants(model):
        if name not in scales and is_free(name, fake_quant):
            fake_quant.enable_observer()
            fake_quant.training = True
    batch.run(model)


@contextmanager
def _scales_kept_on_error(model: nn.Module) -> Iterator[None]:
    kept: list[tuple[FakeQuantize, Tensor, ObserverBase]] = [
        (fq, fq.scale.detach().clone(), copy.deepcopy(fq.activation_post_process)) for _, fq in named_fake_quants(model)
    ]
    try:
        yield
    except BaseException:
        for fake_quant, scale, observer in kept:
            fake_quant.activation_post_process = observer
            fake_quant.scale = scale
        raise


auto_calibration = auto_calibrate
