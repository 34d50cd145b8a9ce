"""The three stages of a network by the default of the tool, and the front end that made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from benchmarks._loaders import Batch
from profiler.quant import March, quantize
from profiler.quant.swap import QuantEffect


@dataclass(frozen=True)
class Network:
    """A float network, its calibrated and its integer form."""

    front_end: str
    calib: nn.Module
    quantized: nn.Module
    effects: tuple[QuantEffect, ...]


def quantized_network(model: nn.Module, batches: Sequence[Batch]) -> Network:
    """The network calibrated on the batches and converted, all defaults."""
    stages = quantize(model, list(batches), march=March.BAYES)
    return Network(stages.frontend, stages.calib, stages.quantized, stages.effects)
