"""What a forward of each stage costs over the float forward, and beside ONNX Runtime on the exported file.

`python -m benchmarks.speed --profile` also prints where the time of the converted forward goes. The forwards run in
turn; a ratio is that of the medians, and beside it that of the shortest times, which other processes disturb least.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks._nets import MobileNetShape, ResNetShape, settled
from profiler.quant import (
    FakeQuantState,
    QConfig,
    compile_model,
    convert_fx,
    default_calib_8bit_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
    load_compiled,
    prepare_qat_fx,
    set_fake_quantize,
    set_march,
)

REPEATS = 7
BATCH = 8
# (row, largest ratio to float that is aimed at)
LIMITS = {
    "MobileNetV2 shape": {"fake quant": 1.5, "calibration min_max": 1.6, "calibration mse": 3.0, "converted": 1.3},
    "ResNet-18 shape": {"fake quant": 1.5, "calibration min_max": 1.6, "calibration mse": 3.0, "converted": 1.0},
}


def interleaved(forwards: dict[str, Callable[[], object]], repeats: int = REPEATS) -> dict[str, list[float]]:
    """Seconds of each forward, all run in turn `repeats` times after one warm-up."""
    for forward in forwards.values():
        forward()
    taken: dict[str, list[float]] = {name: [] for name in forwards}
    for _ in range(repeats):
        for name, forward in forwards.items():
            start = time.perf_counter()
            forward()
            taken[name].append(time.perf_counter() - start)
    return taken


def observing(model: nn.Module, qconfig: QConfig) -> nn.Module:
    """The model in CALIBRATION."""
    prepared = prepare_qat_fx(model, {"": qconfig}, high_precision_outputs=True).eval()
    set_fake_quantize(prepared, FakeQuantState.CALIBRATION)
    return prepared


def calibrated(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """The model in VALIDATION, calibrated on one batch."""
    prepared = observing(model, default_qat_8bit_fake_quant_qconfig)
    prepared(x)
    prepared.eval()
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    return prepared


def stages_of(model: nn.Module, x: torch.Tensor) -> dict[str, nn.Module]:
    """Every stage of a float model in eval, by the name of its row."""
    set_march("bayes")
    fake_quant = calibrated(model, x)
    return {
        "float": model,
        "fake quant": fake_quant,
        "calibration min_max": observing(model, default_qat_8bit_fake_quant_qconfig),
        "calibration mse": observing(model, default_calib_8bit_fake_quant_qconfig),
        "converted": convert_fx(fake_quant),
    }


def forward_in_onnx_runtime(converted: nn.Module, x: torch.Tensor, folder: Path) -> Callable[[], object]:
    """Forward of the exported file; its result is held against the converted model's first."""
    path = folder / "model.onnx"
    compile_model(converted, x, path, opt=3, progressbar=False)
    compiled = load_compiled(path)
    if not torch.equal(compiled(x), converted(x)):
        print("  ONNX Runtime's outputs differ from the converted model's")
    return lambda: compiled(x)


@torch.no_grad()
def measure(name: str, model: nn.Module, is_profiled: bool = False) -> None:
    """Print the table of one network."""
    x = torch.randn(BATCH, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    stages = stages_of(settled(model, x), x)
    forwards = {stage: _forward(module, x) for stage, module in stages.items()}
    with tempfile.TemporaryDirectory() as folder:
        forwards["ONNX Runtime int8"] = forward_in_onnx_runtime(stages["converted"], x, Path(folder))
        taken = interleaved(forwards)
    for stage, times in taken.items():
        middle, least = (f(times) / f(taken["float"]) for f in (statistics.median, min))
        limit = LIMITS[name].get(stage)
        asked = "" if limit is None else f"  asked: <= {limit} {'met' if middle <= limit else 'MISSED'}"
        milliseconds = statistics.median(times) * 1e3
        print(f"{name:18s} {stage:20s} {milliseconds:7.0f} ms  {middle:5.2f} x float (shortest {least:.2f}){asked}")
    ratio = statistics.median(taken["converted"]) / statistics.median(taken["ONNX Runtime int8"])
    print(f"{name:18s} converted over ONNX Runtime on the same file: {ratio:.2f} x  (aim: <= 2)")
    if is_profiled:
        print_profile(stages["converted"], x)


def _forward(module: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    return lambda: module(x)


def print_profile(model: nn.Module, x: torch.Tensor, num_rows: int = 15) -> None:
    """Where the time of a forward goes, by torch operator."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(x)
    averages = profile.key_averages()
    total = sum(event.self_cpu_time_total for event in averages)
    for event in sorted(averages, key=lambda e: -e.self_cpu_time_total)[:num_rows]:
        share = event.self_cpu_time_total / total
        print(f"  {event.key:36s} {event.self_cpu_time_total / 1e3:8.1f} ms {share:6.1%} in {event.count} calls")


def main(is_profiled: bool = False) -> None:
    """Print the tables."""
    torch.manual_seed(0)
    print(f"batch {BATCH}, 224 x 224, {torch.get_num_threads()} threads, median of {REPEATS} forwards in turn")
    measure("MobileNetV2 shape", MobileNetShape(), is_profiled)
    measure("ResNet-18 shape", ResNetShape(), is_profiled)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", action="store_true", help="where the time of the converted forward goes")
    main(parser.parse_args().profile)
