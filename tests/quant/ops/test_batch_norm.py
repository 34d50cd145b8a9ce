from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from profiler.quant import default_qat_8bit_fake_quant_qconfig
from profiler.quant.swap import fake_quant_form
from tests.quant.integer_reference import (
    INT8,
    INT16,
    along_channels,
    bias_codes,
    requantized,
    scales_of_channels,
    weight_codes,
)
from tests.quant.op_forms import (
    assert_codes_equal,
    assert_nearly_same_codes,
    assert_within_one_step,
    codes,
    fake_quantized_float64,
    forms_of,
    on_grid,
    quantized,
)
from tests.quant.ops.spatial_gemm_cases import assert_front_ends_convert

X_SCALE = 0.043
CASES = [
    (nn.BatchNorm2d, (6, 5, 7, 8)),
    (nn.BatchNorm1d, (6, 5, 9)),
    (nn.BatchNorm1d, (6, 5)),
    (nn.BatchNorm3d, (3, 5, 4, 3, 6)),
    (nn.BatchNorm2d, (0, 5, 7, 8)),
]


def norm(cls: Any, affine: bool = True) -> Any:
    module = cls(5, affine=affine)
    module.running_mean.uniform_(-2, 2)
    module.running_var.uniform_(0.2, 4)
    if affine:
        module.weight.data.uniform_(-2, 2)
        module.bias.data.uniform_(-1, 1)
    return module.eval()


def gain_and_shift(module: Any) -> tuple[np.ndarray, np.ndarray]:
    gain = 1 / np.sqrt(module.running_var.double().numpy() + module.eps)
    if module.weight is not None:
        gain = gain * module.weight.detach().double().numpy()
    shift = -module.running_mean.double().numpy() * gain
    return gain, shift + (0 if module.bias is None else module.bias.detach().double().numpy())


@pytest.mark.parametrize(("cls", "shape"), CASES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
def test_batch_norm_integer_form_equals_integer_arithmetic(cls: Any, shape: Any, affine: bool, dtype: str) -> None:
    module, x_q = norm(cls, affine), codes(shape, dtype=dtype)
    out_scale = 0.11 if dtype == "qint8" else 0.03
    _, integer = forms_of(module, out_scale, dtype)
    gain, shift = (v.astype(np.float32) for v in gain_and_shift(module))
    w_scale = scales_of_channels(gain)
    acc_scale = np.float32(X_SCALE) * w_scale
    acc = x_q.numpy().astype(np.int64) * along_channels(weight_codes(gain, w_scale), x_q.dim(), 1)
    acc = acc + along_channels(bias_codes(shift, acc_scale), x_q.dim(), 1)
    multiplier = along_channels(acc_scale / np.float32(out_scale), x_q.dim(), 1)
    expected = requantized(acc, multiplier, INT8 if dtype == "qint8" else INT16)
    assert_codes_equal(integer(quantized(x_q, X_SCALE, dtype)), expected, dtype)


@pytest.mark.parametrize(("cls", "shape"), CASES[:4])
def test_batch_norm_fake_quant_equals_formula_and_integer_form(cls: Any, shape: Any) -> None:
    module, x_q = norm(cls), codes(shape)
    fake, integer = forms_of(module, 0.11)
    gain, shift = gain_and_shift(module)
    w_scale = scales_of_channels(gain.astype(np.float32))
    gain_fq = weight_codes(gain.astype(np.float32), w_scale) * w_scale.astype(np.float64)
    real = x_q.numpy() * np.float64(np.float32(X_SCALE)) * along_channels(gain_fq, x_q.dim(), 1)
    step = np.float64(np.float32(X_SCALE)) * w_scale.astype(np.float64)
    real = real + along_channels(np.rint(shift.astype(np.float32) / step) * step, x_q.dim(), 1)
    y_fq = fake(on_grid(x_q, X_SCALE))
    assert_within_one_step(y_fq, fake_quantized_float64(real, 0.11), 0.11)
    assert_nearly_same_codes(y_fq, integer(quantized(x_q, X_SCALE)))


def test_batch_norm_fake_quant_eval_is_near_float() -> None:
    module = norm(nn.BatchNorm2d)
    fake, _ = forms_of(module, 0.11)
    x = on_grid(codes((6, 5, 7, 8)), X_SCALE)
    error = (fake(x).dequantize() - module(x.dequantize())).abs()
    assert float(error.detach().max()) < 0.11 / 2 + 0.005 * float(module(x.dequantize()).detach().abs().max())


@pytest.mark.parametrize(("cls", "shape"), [(nn.BatchNorm2d, (16, 5, 6, 6)), (nn.BatchNorm3d, (8, 5, 3, 4, 4))])
def test_batch_norm_fake_quant_training_follows_the_batch_and_moves_the_statistics(cls: Any, shape: Any) -> None:
    module = norm(cls).train()
    before = module.running_mean.clone()
    fake: Any = fake_quant_form(module, default_qat_8bit_fake_quant_qconfig)
    x = torch.randn(shape)
    y = fake(x).dequantize()
    expected = nn.functional.batch_norm(x, None, None, module.weight, module.bias, training=True)
    assert float((y - expected).abs().max()) <= float(fake.activation_post_process.scale) * 1.01
    assert not torch.equal(fake.running_mean, before)


def test_batch_norm_integer_follows_statistics_moved_after_prepare() -> None:
    module = norm(nn.BatchNorm2d)
    fake, _ = forms_of(module, 0.11)
    fake.running_var.mul_(4)
    x_q = codes((6, 5, 7, 8))
    assert_nearly_same_codes(fake(on_grid(x_q, X_SCALE)), fake.to_integer()(quantized(x_q, X_SCALE)))


def test_batch_norm_without_running_statistics_stays_float() -> None:
    module = nn.BatchNorm2d(3, track_running_stats=False)
    assert fake_quant_form(module, default_qat_8bit_fake_quant_qconfig) is module


@pytest.mark.parametrize(("cls", "shape"), CASES[:4])
def test_batch_norm_runs_in_both_front_ends_and_onnx_runtime(cls: Any, shape: Any) -> None:
    assert_front_ends_convert(lambda: norm(cls), shape)
