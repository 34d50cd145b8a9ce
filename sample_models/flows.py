"""A sample's way from float to the ONNX file, eager or FX, with its accuracy at every stage."""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from profiler.quant import (
    FakeQuantState,
    March,
    check_model,
    compile_model,
    convert,
    convert_fx,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_8bit_weight_32bit_out_fake_quant_qconfig,
    default_calib_16bit_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
    default_qat_8bit_weight_32bit_out_fake_quant_qconfig,
    default_qat_16bit_fake_quant_qconfig,
    get_default_qat_out_qconfig,
    get_default_qat_qconfig,
    load_compiled,
    prepare_qat,
    prepare_qat_fx,
    set_fake_quantize,
    set_march,
)

Evaluate = Callable[[nn.Module], float]
Report = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Sample:
    """What a flow needs to know of a sample.

    Attributes:
        name: of the sample.
        metric: what `evaluate` measures, with its unit.
        load: the trained float network in eval mode.
        calibration_batches: batches to calibrate with.
        evaluate: accuracy of any stage.
        train: the float trainer, `train(model, epochs)`; QAT replaces the model only.
        outputs: names of the layers whose results leave in high precision.
        parts: names of the parts that have `fuse_modules`.
        losses: names of the modules that stay float.
        wide: names of the modules whose results are int16.
        deploy: puts the converted parts of the eager flow together again, as what is deployed.
    """

    name: str
    metric: str
    load: Callable[[], nn.Module]
    calibration_batches: Callable[[], list[torch.Tensor]]
    evaluate: Evaluate
    train: Callable[[nn.Module, int], object]
    outputs: tuple[str, ...]
    parts: tuple[str, ...]
    losses: tuple[str, ...] = ()
    wide: tuple[str, ...] = ()
    deploy: Callable[[nn.Module], nn.Module] = field(default=lambda model: model)


class OneByOne(nn.Module):
    """Runs a traced or compiled network, made for one batch size, on batches of any size.

    Args:
        run: gives the outputs for one example; a tensor or a sequence of them.
    """

    def __init__(self, run: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: torch.Tensor) -> Any:
        outputs = [self.run(example) for example in torch.split(x, 1)]
        if isinstance(outputs[0], torch.Tensor):
            return torch.cat(outputs)
        return tuple(torch.cat(list(parts)) for parts in zip(*outputs, strict=True))


@torch.no_grad()
def calibrate(calib_model: nn.Module, batches: list[torch.Tensor]) -> nn.Module:
    """Observes the batches; the model is then ready to be evaluated in int8."""
    calib_model.eval()
    set_fake_quantize(calib_model, FakeQuantState.CALIBRATION)
    for batch in batches:
        calib_model(batch)
    calib_model.eval()
    set_fake_quantize(calib_model, FakeQuantState.VALIDATION)
    return calib_model


def fuse_parts(sample: Sample, model: nn.Module) -> None:
    """What the eager flow does to a float model once: fuses each part, and keeps the losses in float."""
    for part in sample.parts:
        model.get_submodule(part).fuse_modules()  # type: ignore[operator]
    for name in sample.losses:
        model.get_submodule(name).qconfig = None  # type: ignore[assignment]


def calibrated_eager(sample: Sample, model: nn.Module) -> nn.Module:
    """Calibrated form of a fused float model, by `qconfig` attributes."""
    model.qconfig = default_calib_8bit_fake_quant_qconfig  # type: ignore[assignment]
    for name in sample.outputs:
        out_qconfig = default_calib_8bit_weight_32bit_out_fake_quant_qconfig()
        model.get_submodule(name).qconfig = out_qconfig  # type: ignore[assignment]
    for name in sample.wide:
        model.get_submodule(name).qconfig = default_calib_16bit_fake_quant_qconfig  # type: ignore[assignment]
    return calibrate(prepare_qat(model), sample.calibration_batches())


def calibrated_fx(sample: Sample, model: nn.Module) -> nn.Module:
    """Calibrated form of a float model, by a dict of qconfigs; nothing is fused by hand."""
    outputs = dict.fromkeys(sample.outputs, default_calib_8bit_weight_32bit_out_fake_quant_qconfig)
    wide = dict.fromkeys(sample.wide, default_calib_16bit_fake_quant_qconfig)
    qconfigs = {"": default_calib_8bit_fake_quant_qconfig, "module_name": {**outputs, **wide}}
    return calibrate(prepare_qat_fx(model, qconfigs), sample.calibration_batches())


def train_qat(qat_model: nn.Module, calib_model: nn.Module, sample: Sample, epochs: int) -> nn.Module:
    """Weights and scales of the calibrated model, then the float trainer; ready to be evaluated in int8."""
    qat_model.load_state_dict(calib_model.state_dict())
    sample.train(qat_model, epochs)
    qat_model.eval()
    set_fake_quantize(qat_model, FakeQuantState.VALIDATION)
    return qat_model


def run_eager(sample: Sample, qat_epochs: int, report: Report, path: Path) -> None:
    """The eager flow, each call as the user's manual has it."""
    model = sample.load()
    with _measured(report, "float") as result:
        result(sample.evaluate(model))
    set_march(March.BAYES)
    fuse_parts(sample, model)

    with _measured(report, "calib") as result:
        calib_model = calibrated_eager(sample, model)
        result(sample.evaluate(calib_model))
    with _measured(report, "calib, quantized") as result:
        result(sample.evaluate(convert(calib_model)))

    with _measured(report, "qat") as result:
        model.qconfig = get_default_qat_qconfig()  # type: ignore[assignment]
        for name in sample.outputs:
            model.get_submodule(name).qconfig = get_default_qat_out_qconfig()  # type: ignore[assignment]
        for name in sample.wide:
            model.get_submodule(name).qconfig = default_qat_16bit_fake_quant_qconfig  # type: ignore[assignment]
        qat_model = train_qat(prepare_qat(model), calib_model, sample, qat_epochs)
        result(sample.evaluate(qat_model))
    with _measured(report, "quantized") as result:
        quantized_model = convert(qat_model.eval())
        result(sample.evaluate(quantized_model))
    _deploy(sample, sample.deploy(quantized_model), report, path)


def run_fx(sample: Sample, qat_epochs: int, report: Report, path: Path) -> None:
    """The FX flow: no fusing by hand, qconfigs by name."""
    model = sample.load()
    with _measured(report, "float") as result:
        result(sample.evaluate(model))
    set_march(March.BAYES)

    with _measured(report, "calib") as result:
        calib_model = calibrated_fx(sample, model)
        result(sample.evaluate(calib_model))
    with _measured(report, "calib, quantized") as result:
        result(sample.evaluate(convert_fx(calib_model)))

    with _measured(report, "qat") as result:
        outputs = dict.fromkeys(sample.outputs, default_qat_8bit_weight_32bit_out_fake_quant_qconfig)
        wide = dict.fromkeys(sample.wide, default_qat_16bit_fake_quant_qconfig)
        qconfigs = {"": default_qat_8bit_fake_quant_qconfig, "module_name": {**outputs, **wide}}
        qat_model = train_qat(prepare_qat_fx(model, qconfigs), calib_model, sample, qat_epochs)
        result(sample.evaluate(qat_model))
    with _measured(report, "quantized") as result:
        quantized_model = convert_fx(qat_model.eval())
        result(sample.evaluate(quantized_model))
    _deploy(sample, quantized_model, report, path)


FLOWS: dict[str, Callable[[Sample, int, Report, Path], None]] = {"eager": run_eager, "fx": run_fx}


def main(sample: Sample, arguments: list[str] | None = None, *, qat_epochs: int) -> None:
    """Command line of a sample: runs one flow and prints a line per stage.

    Args:
        sample: the sample.
        arguments: of the command; None reads them from the process.
        qat_epochs: default number of QAT epochs.
    """
    parser = argparse.ArgumentParser(description=f"{sample.name}: from float to the ONNX file, {sample.metric}")
    parser.add_argument("--flow", choices=sorted(FLOWS), default="eager")
    parser.add_argument("--qat-epochs", type=int, default=qat_epochs, metavar="N")
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="keep the compiled model (.onnx, or an archive)")
    given = parser.parse_args(arguments)
    logging.getLogger("profiler.quant.deploy.check").setLevel(logging.ERROR)  # advice: a line for nearly every op
    print(f"{sample.name}, {given.flow} flow: {sample.metric}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = given.onnx or Path(folder) / f"{sample.name}.onnx"
        FLOWS[given.flow](sample, given.qat_epochs, _print_stage, path)


def _print_stage(stage: str, value: float, seconds: float) -> None:
    print(f"{stage:17} {value:6.2f}   {seconds:5.1f} s", flush=True)


@contextmanager
def _measured(report: Report, stage: str) -> Iterator[Callable[[float], None]]:
    """Reports the accuracy that is handed over, and how long it took to get there."""
    start, values = time.monotonic(), list[float]()
    yield values.append
    report(stage, values[-1], time.monotonic() - start)


def _deploy(sample: Sample, deployed: nn.Module, report: Report, path: Path) -> None:
    """Traces, checks and compiles the network to deploy, and measures what ONNX Runtime computes from the file."""
    example_input = sample.calibration_batches()[0][:1]
    traced = torch.jit.trace(deployed.eval(), example_input)  # type: ignore[no-untyped-call]
    traced.to(torch.device("cpu"))
    with _measured(report, "onnx") as result:
        check_model(traced, example_input, advice=1)
        compile_model(traced, [example_input], opt=0, hbm=path)
        result(sample.evaluate(OneByOne(load_compiled(path))))
