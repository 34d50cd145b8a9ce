"""What each stage's forward costs over the float forward, and what comparing two stages costs over running them.

All ratios are of medians taken in one run, the forwards in turn; memory is the growth of the peak resident size.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from benchmarks._nets import MobileNetShape, ResNetShape, settled
from profiler.capture.batches import Batch
from profiler.capture.lockstep import run_pair
from profiler.capture.stage import Stage
from profiler.quant import (
    FakeQuantState,
    convert_fx,
    default_calib_8bit_fake_quant_qconfig,
    prepare_qat_fx,
    set_fake_quantize,
    set_march,
)

REPEATS = 5
BATCH = 8


def median_seconds(functions: dict[str, Callable[[], object]], repeats: int = REPEATS) -> dict[str, float]:
    """Median time of each function, all run in turn `repeats` times after one warm-up."""
    for function in functions.values():
        function()
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def stages_of(model: nn.Module, x: torch.Tensor) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The model in CALIBRATION, in VALIDATION, and as integers."""
    set_march("bayes")
    observing = prepare_qat_fx(model, {"": default_calib_8bit_fake_quant_qconfig}, high_precision_outputs=True).eval()
    set_fake_quantize(observing, FakeQuantState.CALIBRATION)
    calib = prepare_qat_fx(model, {"": default_calib_8bit_fake_quant_qconfig}, high_precision_outputs=True).eval()
    set_fake_quantize(calib, FakeQuantState.CALIBRATION)
    calib(x)
    calib.eval()
    set_fake_quantize(calib, FakeQuantState.VALIDATION)
    return observing, calib, convert_fx(calib)


def peak_mb() -> float:
    """Peak resident size of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.no_grad()
def measure(name: str, model: nn.Module) -> None:
    """Print the table of one network."""
    x = torch.randn(BATCH, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    model = settled(model, x)
    observing, calib, quantized = stages_of(model, x)
    forwards: dict[str, Callable[[], object]] = {
        "float": lambda: model(x),
        "calibration (mse)": lambda: observing(x),
        "fake quant": lambda: calib(x),
        "integer": lambda: quantized(x),
    }
    plain = median_seconds(forwards)
    before = peak_mb()

    def pair() -> object:
        return run_pair(Stage("float", model), Stage("calib", calib), [Batch((x,))])

    compared = median_seconds({"pair": pair}, repeats=2)["pair"]
    for stage, seconds in plain.items():
        print(f"{name:18s} {stage:20s} {seconds * 1e3:8.0f} ms  {seconds / plain['float']:5.2f} x float")
    two = plain["float"] + plain["fake quant"]
    print(f"{name:18s} {'comparing a pair':20s} {compared * 1e3:8.0f} ms  {compared / two:5.2f} x the two forwards")
    print(f"{name:18s} {'memory for it':20s} {peak_mb() - before:8.0f} MB  over the peak of the forwards")


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    print(f"batch {BATCH}, 224 x 224, {torch.get_num_threads()} threads, median of {REPEATS}")
    measure("MobileNetV2 shape", MobileNetShape())
    measure("ResNet-18 shape", ResNetShape())


if __name__ == "__main__":
    main()
