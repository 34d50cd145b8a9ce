"""What the tests of conv3d and the transposed convolutions share: truth from integer numpy, forms, front ends."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from profiler.quant import DeQuantStub, QuantStub
from tests.quant.integer_reference import (
    INT8,
    INT16,
    along_channels,
    bias_codes,
    padded,
    requantized,
    scales_of_channels,
    weight_codes,
)
from tests.quant.integer_reference import conv_accumulator as convolved
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.op_forms import (
    assert_nearly_same_codes,
    assert_within_one_step,
    fake_quantized_float64,
    forms_of,
    on_grid,
    quantized,
)
from tests.quant.stages import FRONT_ENDS

X_SCALE = 0.021
RANGES = {"qint8": INT8, "qint16": INT16}


def rows_of(module: Any, weight: np.ndarray) -> np.ndarray:
    """Output channels first, `[C_out, C_in / groups, ...]`, channel by channel."""
    if not is_transposed(module):
        return weight
    per_group_in, per_group_out = weight.shape[0] // module.groups, weight.shape[1]
    channels = [
        weight[g * per_group_in : (g + 1) * per_group_in, o] for g in range(module.groups) for o in range(per_group_out)
    ]
    return np.stack(channels)


def is_transposed(module: Any) -> bool:
    return isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))


def scales_and_rows(module: Any) -> tuple[np.ndarray, np.ndarray]:
    """float32 scale of each output channel (one for all where a transposed convolution is grouped), codes in rows."""
    rows = rows_of(module, module.weight.detach().numpy())
    scales = scales_of_channels(rows)
    if is_transposed(module) and module.groups > 1:
        scales = np.full_like(scales, scales_of_channels(rows.reshape(1, -1))[0])
    return scales, weight_codes(rows, scales)


def transposed_accumulator(module: Any, x_q: np.ndarray, rows: np.ndarray, output_padding: Any) -> np.ndarray:
    """int64 sums: every input code times every tap, added at the place where it lands."""
    spatial = [
        (n - 1) * s + d * (k - 1) + 1 + p
        for n, s, d, k, p in zip(
            x_q.shape[2:], module.stride, module.dilation, module.kernel_size, output_padding, strict=True
        )
    ]
    full = np.zeros((x_q.shape[0], rows.shape[0], *spatial), np.int64)
    per_group_in, per_group_out = x_q.shape[1] // module.groups, rows.shape[0] // module.groups
    for g in range(module.groups):
        inputs = x_q[:, g * per_group_in : (g + 1) * per_group_in].astype(np.int64)
        kernel = rows[g * per_group_out : (g + 1) * per_group_out].astype(np.int64)
        for tap in itertools.product(*(range(k) for k in module.kernel_size)):
            part = np.einsum("ni...,oi->no...", inputs, kernel[(slice(None), slice(None), *tap)])
            places = tuple(
                slice(t * d, t * d + (n - 1) * s + 1, s)
                for t, d, n, s in zip(tap, module.dilation, x_q.shape[2:], module.stride, strict=True)
            )
            full[(slice(None), slice(g * per_group_out, (g + 1) * per_group_out), *places)] += part
    cut = tuple(slice(p, n - p) for p, n in zip(module.padding, spatial, strict=True))
    return full[(slice(None), slice(None), *cut)]


def product(module: Any, x_q: np.ndarray, output_padding: Any = None) -> np.ndarray:
    _, rows = scales_and_rows(module)
    if is_transposed(module):
        return transposed_accumulator(module, x_q, rows, output_padding or module.output_padding)
    spatial = tuple((p, p) for p in module.padding)
    return convolved(
        padded(x_q.astype(np.int64), spatial, module.padding_mode), rows, module.stride, module.dilation, module.groups
    )


def accumulator(module: Any, x_q: Tensor, output_padding: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """int64 accumulator with bias, and its float32 scale viewed along the channels."""
    scales, _ = scales_and_rows(module)
    acc = product(module, x_q.numpy(), output_padding)
    acc_scale = np.float32(X_SCALE) * scales
    if module.bias is not None:
        acc = acc + along_channels(bias_codes(module.bias.detach().numpy(), acc_scale), acc.ndim, 1)
    return acc, along_channels(acc_scale, acc.ndim, 1)


def expected_codes(module: Any, x_q: Tensor, out_scale: float, dtype: str, output_padding: Any = None) -> np.ndarray:
    acc, acc_scale = accumulator(module, x_q, output_padding)
    return requantized(acc, acc_scale / np.float32(out_scale), RANGES[dtype])


def scale_that_fits(module: Any, x_q: Tensor, dtype: str = "qint8") -> float:
    acc, acc_scale = accumulator(module, x_q)
    real = np.abs(acc * acc_scale.astype(np.float64))
    return float(real.max() * 0.9 / RANGES[dtype][1]) if real.size else 0.1


def assert_fake_quant_equals_formula_and_integer(module: Any, x_q: Tensor) -> None:
    """Fake quant against the product of real weights in float64, then against the integer form."""
    out_scale = scale_that_fits(module, x_q)
    fake, integer = forms_of(module, out_scale)
    acc, acc_scale = accumulator(module, x_q)
    sums = acc * acc_scale.astype(np.float64)  # outside training both forms have the bias in accumulator steps
    y_fq = fake(on_grid(x_q, X_SCALE))
    assert_within_one_step(y_fq, fake_quantized_float64(sums, out_scale), out_scale)
    assert_nearly_same_codes(y_fq, integer(quantized(x_q, X_SCALE)))


def assert_front_ends_convert(make_op: Any, shape: tuple[int, ...]) -> None:
    """Both front ends: float near fake quant, fake quant near integers, which ONNX Runtime equals, finite gradients."""
    for name, (prepare, convert_it) in FRONT_ENDS.items():
        torch.manual_seed(0)
        model = Stubbed(make_op()).eval()
        x = torch.randn(shape)
        prepared = prepare(model, [x])
        converted = convert_it(prepared)
        y, y_fq, y_q = model(x), prepared(x), converted(x)
        step = float(y.detach().abs().max()) / 127
        assert float((y - y_fq).detach().abs().max()) < 8 * step, name
        assert float((y_q - y_fq).detach().abs().max()) < 2.5 * step, name
        assert_equals_onnx(converted, x)
        prepared.train()
        prepared(x).square().mean().backward()
        grads = [p.grad for p in prepared.parameters()]
        assert grads
        assert all(g is not None and bool(g.isfinite().all()) for g in grads), name


class Stubbed(nn.Module):
    """One op between stubs."""

    def __init__(self, op: nn.Module) -> None:
        super().__init__()
        self.quant, self.op, self.dequant = QuantStub(), op, DeQuantStub()

    def forward(self, x: Any) -> Any:
        return self.dequant(self.op(self.quant(x)))
