"""Every operator of the table between stubs: the converted model equals ONNX Runtime in int8 and in int16."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.quant import (
    DeQuantStub,
    March,
    QuantStub,
    convert_fx,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_16bit_fake_quant_qconfig,
    prepare_qat_fx,
    set_march,
)
from tests.quant.deploy.functions import rand
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.stages import calibrate

QCONFIGS = {"int8": default_calib_8bit_fake_quant_qconfig, "int16": default_calib_16bit_fake_quant_qconfig}
X, Y, ROW, CUBE = rand(2, 4, 8, 8), rand(2, 4, 8, 8, seed=1), rand(3, 6, 8, seed=2), rand(2, 4, 5, 6, 6, seed=3)
POSITIVE = X.abs() + 0.1
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{n: getattr(torch, n) for n in "sigmoid tanh exp erf sin cos relu abs neg square atan".split()},
    **{n: getattr(F, n) for n in "silu gelu hardswish hardsigmoid hardtanh relu6 leaky_relu elu selu softplus mish "
       "logsigmoid".split()},
    "add_number": lambda x: x + 1.5, "mul_number": lambda x: x * 0.3, "rsub": lambda x: 1 - x, "pow": lambda x: x**2,
    "mean": lambda x: x.mean((2, 3)), "sum": lambda x: x.sum(1), "amax": lambda x: x.amax(1),
    "max_dim": lambda x: x.max(1)[0], "argmax": lambda x: x.argmax(1), "topk": lambda x: x.topk(2, 1)[0],
    "gather": lambda x: x.gather(1, torch.zeros(2, 1, 8, 8, dtype=torch.long)), "clamp": lambda x: x.clamp(-0.5, 1),
    "masked_fill": lambda x: x.masked_fill(x > 0, 0.0), "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(-1), "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "pad": lambda x: F.pad(x, (1, 2, 1, 0)), "pad_reflect": lambda x: F.pad(x, (1, 2, 1, 0), mode="reflect"),
    "pad_value": lambda x: F.pad(x, (1, 2, 1, 0), value=1.0), "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "split": lambda x: torch.cat(x.split(2, 1)[::-1], 1), "roll": lambda x: x.flip(2).roll(1, 2),
    "getitem": lambda x: x[:, 1:3, ::2] + 0.0,
}  # fmt: skip
POSITIVE_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{n: getattr(torch, n) for n in "sqrt rsqrt log reciprocal".split()},
    "rdiv": lambda x: 1 / x,
    "pow_real": lambda x: x**1.7,
}
PAIRS: dict[str, Callable[..., Any]] = {
    **{n: getattr(torch, n) for n in "add sub mul maximum minimum gt".split()},
    "div": lambda x, y: x / (y * y + 0.5), "broadcast": lambda x, y: x + y[:, :, :1], "matmul": lambda x, y: x @ y,
    "einsum": lambda x, y: torch.einsum("nchw,ndhw->ncd", x, y), "cat": lambda x, y: torch.cat([x, y], 1),
    "stack": lambda x, y: torch.stack([x, y], 1), "where": lambda x, y: torch.where(x > y, x, y),
    "attention": lambda x, y: F.scaled_dot_product_attention(x, y, y),
    "grid_sample": lambda x, y: F.grid_sample(x, y[:, :, :, :2] * 0.5, align_corners=False),
}  # fmt: skip


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return self.attention(x, x, x)[0]


class FirstOf(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        return self.module(x)[0]


MODULES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "conv1d": (lambda: nn.Conv1d(6, 4, 3), ROW),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, 2, 1), X),
    "conv_reflect": (lambda: nn.Conv2d(4, 6, 3, 1, 1, padding_mode="reflect"), X),
    "conv_bn_relu": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()), X),
    "conv3d": (lambda: nn.Conv3d(4, 3, 3, padding=1), CUBE),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(6, 4, 3, 2, 1), ROW),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(4, 6, 4, 2, 1), X),
    "conv_transpose_groups": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), X),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(4, 3, 3, 2), CUBE),
    "linear": (lambda: nn.Linear(8, 5), ROW),
    "batch_norm2d": (lambda: nn.BatchNorm2d(4), X),
    "batch_norm1d": (lambda: nn.BatchNorm1d(6), ROW),
    "batch_norm3d": (lambda: nn.BatchNorm3d(4), CUBE),
    "layer_norm": (lambda: nn.LayerNorm(8), ROW),
    "group_norm": (lambda: nn.GroupNorm(2, 4), X),
    "instance_norm": (lambda: nn.InstanceNorm2d(4), X),
    "rms_norm": (lambda: nn.RMSNorm(8), ROW),
    "multihead_attention": (SelfAttention, ROW),
    "transformer_layer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), ROW),
    "lstm": (lambda: FirstOf(nn.LSTM(8, 5, batch_first=True)), ROW),
    "lstm_deep": (lambda: FirstOf(nn.LSTM(8, 5, 2, bidirectional=True)), ROW),
    "gru": (lambda: FirstOf(nn.GRU(8, 5)), ROW),
    "prelu": (lambda: nn.PReLU(4), X),
    "max_pool": (lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True), X),
    "max_pool1d": (lambda: nn.MaxPool1d(2), ROW),
    "max_pool3d": (lambda: nn.MaxPool3d(2), CUBE),
    "avg_pool": (lambda: nn.AvgPool2d(3, 2, 1), X),
    "avg_pool1d": (lambda: nn.AvgPool1d(2), ROW),
    "avg_pool3d": (lambda: nn.AvgPool3d(2), CUBE),
    "adaptive_avg_pool": (lambda: nn.AdaptiveAvgPool2d((3, 5)), X),
    "adaptive_max_pool": (lambda: nn.AdaptiveMaxPool2d(3), X),
    "upsample": (lambda: nn.Upsample(scale_factor=2), X),
}


class One(nn.Module):
    """An operator between stubs."""

    def __init__(self, op: Callable[..., Any]) -> None:
        super().__init__()
        self.quant, self.quant_other, self.dequant, self.op = QuantStub(), QuantStub(), DeQuantStub(), op

    def forward(self, x: Tensor) -> Any:
        return self.dequant(self.op(self.quant(x)))


class Two(One):
    def forward(self, x: Tensor, y: Tensor) -> Any:  # type: ignore[override]
        return self.dequant(self.op(self.quant(x), self.quant_other(y)))


CASES: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    **{name: (function, (X,)) for name, function in FUNCTIONS.items()},
    **{name: (function, (POSITIVE,)) for name, function in POSITIVE_FUNCTIONS.items()},
    **{name: (function, (X, Y)) for name, function in PAIRS.items()},
}


def check(model: nn.Module, inputs: tuple[Tensor, ...], dtype: str) -> None:
    set_march(March.BAYES)
    prepared = prepare_qat_fx(model.eval(), {"": QCONFIGS[dtype]})

    class Batches(nn.Module):
        """Calibrates with several inputs."""

        def forward(self, batch: Any) -> Any:
            return prepared(*batch)

    runner = Batches()
    runner.model = prepared
    calibrate(runner, [inputs])
    assert_equals_onnx(convert_fx(prepared), *inputs)


@pytest.mark.parametrize("dtype", QCONFIGS)
@pytest.mark.parametrize("name", CASES)
def test_function_equals_onnx_runtime(name: str, dtype: str) -> None:
    function, inputs = CASES[name]

    check(One(function) if len(inputs) == 1 else Two(function), inputs, dtype)


@pytest.mark.parametrize("dtype", QCONFIGS)
@pytest.mark.parametrize("name", MODULES)
def test_module_equals_onnx_runtime(name: str, dtype: str) -> None:
    make, x = MODULES[name]
    torch.manual_seed(0)

    check(One(copy.deepcopy(make())), (x,), dtype)
