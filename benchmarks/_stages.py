"""The three stages of a network by the default of the tool, and the front end that made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import fx, nn

from benchmarks._loaders import Batch
from profiler.api.options import Options
from profiler.api.workflow import calibrate
from profiler.capture.batches import take_batches
from profiler.quant import March, convert, default_calib_8bit_fake_quant_qconfig
from profiler.quant.fx.parts import drop_unused_parts, prepare_traceable
from profiler.quant.march import march_set_to
from profiler.quant.swap import EFFECTS_ATTRIBUTE, QuantEffect, copy_in_eval


@dataclass(frozen=True)
class Network:
    """A float network, its calibrated and its integer form."""

    front_end: str
    calib: nn.Module
    quantized: nn.Module
    effects: tuple[QuantEffect, ...]


def quantized_network(model: nn.Module, batches: Sequence[Batch]) -> Network:
    """The network calibrated on the batches and converted, all defaults."""
    with march_set_to(March.BAYES):
        return _quantized(model, batches)


def _quantized(model: nn.Module, batches: Sequence[Batch]) -> Network:
    reference = copy_in_eval(model)
    items = take_batches(list(batches), reference, 32).items
    calib = prepare_traceable(
        reference,
        {"": default_calib_8bit_fake_quant_qconfig},
        example_inputs=items[0].positional(reference),
        high_precision_outputs=True,
    )
    calib.eval()
    calibrate(calib, reference, items, Options(Path()))
    drop_unused_parts(calib)
    front_end = "FX" if isinstance(calib, fx.GraphModule) else "parts"
    return Network(front_end, calib, convert(calib), tuple(getattr(calib, EFFECTS_ATTRIBUTE)))
