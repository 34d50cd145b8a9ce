"""What comparing a float model with its fake-quant form costs over running the two, in time and memory.

The ratio is of medians taken in one run, the forwards in turn; memory is the growth of the peak resident size.
"""

from __future__ import annotations

import resource
import statistics

import torch
from torch import nn

from benchmarks._nets import MobileNetShape, ResNetShape, settled
from benchmarks.speed import BATCH, calibrated, interleaved
from profiler.capture.lockstep import run_pair
from profiler.capture.stage import Stage
from profiler.quant import set_march
from profiler.quant.batches import Batch

REPEATS = 3


def peak_mb() -> float:
    """Peak resident size of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.no_grad()
def measure(name: str, model: nn.Module) -> None:
    """Print the lines of one network."""
    x = torch.randn(BATCH, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    set_march("bayes")
    model = settled(model, x)
    calib = calibrated(model, x)
    model(x)
    calib(x)
    before = peak_mb()

    def pair() -> object:
        return run_pair(Stage("float", model), Stage("calib", calib), [Batch((x,))])

    taken = interleaved({"float": lambda: model(x), "fake quant": lambda: calib(x), "pair": pair}, REPEATS)
    seconds = {row: statistics.median(times) for row, times in taken.items()}
    ratio = seconds["pair"] / (seconds["float"] + seconds["fake quant"])
    print(f"{name:18s} {'comparing a pair':20s} {seconds['pair'] * 1e3:8.0f} ms  {ratio:5.2f} x the two forwards")
    print(f"{name:18s} {'memory for it':20s} {peak_mb() - before:8.0f} MB  over the peak of the forwards")


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    print(f"batch {BATCH}, 224 x 224, {torch.get_num_threads()} threads, median of {REPEATS}")
    measure("MobileNetV2 shape", MobileNetShape())
    measure("ResNet-18 shape", ResNetShape())


if __name__ == "__main__":
    main()
