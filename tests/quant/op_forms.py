"""Fake-quant and integer forms of single ops with chosen scales, and the comparisons that all op tests share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from profiler.quant import QTensor, default_qat_8bit_fake_quant_qconfig, default_qat_16bit_fake_quant_qconfig
from profiler.quant.affine import qinfo
from profiler.quant.qconfig import QConfig, high_precision_output
from profiler.quant.swap import fake_quant_form

QCONFIGS = {"qint8": default_qat_8bit_fake_quant_qconfig, "qint16": default_qat_16bit_fake_quant_qconfig}
HIGH_PRECISION = high_precision_output(default_qat_8bit_fake_quant_qconfig)


def codes(shape: tuple[int, ...], seed: int = 0, dtype: str = "qint8") -> Tensor:
    """Random codes over the whole range; both ends are present where there is room."""
    info = qinfo(dtype)
    x = torch.randint(info.quant_min, info.quant_max + 1, shape, generator=torch.Generator().manual_seed(seed))
    if x.numel() > 1:
        x.view(-1)[0], x.view(-1)[-1] = info.quant_min, info.quant_max
    return x.to(info.torch_dtype)


def quantized(x_q: Tensor, scale: float, dtype: str = "qint8") -> QTensor:
    """Codes as a converted model passes them on."""
    return QTensor.wrap(x_q, torch.tensor(scale, dtype=torch.float32), dtype)


def on_grid(x_q: Tensor, scale: float, dtype: str = "qint8") -> QTensor:
    """The same values as a prepared model passes them on: float, on the grid."""
    s = torch.tensor(scale, dtype=torch.float32)
    return QTensor.wrap(x_q.to(torch.float32) * s, s, dtype)


def fake_quant_of(module: nn.Module, out_scale: float | None, dtype: str = "qint8") -> Any:
    """Fake-quant form in eval with a given output scale; None for a high-precision output."""
    qconfig: QConfig = HIGH_PRECISION if out_scale is None else QCONFIGS[dtype]
    form: Any = fake_quant_form(module.eval(), qconfig).eval()
    if out_scale is not None:
        form.activation_post_process.set_qparams(out_scale)
    return form


def forms_of(module: nn.Module, out_scale: float | None, dtype: str = "qint8") -> tuple[Any, Any]:
    """Fake-quant and integer form with the same scales."""
    fake = fake_quant_of(module, out_scale, dtype)
    return fake, fake.to_integer()


def assert_codes_equal(actual: Tensor, expected: np.ndarray, dtype: str = "qint8") -> None:
    """A QTensor of codes with exactly these values."""
    assert isinstance(actual, QTensor)
    assert actual.holds_codes
    assert actual.plain.dtype == qinfo(dtype).torch_dtype
    assert tuple(actual.shape) == expected.shape
    np.testing.assert_array_equal(actual.plain.numpy().astype(np.int64), expected)


def assert_nearly_same_codes(fake: Tensor, integer: Tensor, share: float = 0.999) -> None:
    """Fake-quant and integer results: at most one code apart, equal nearly everywhere."""
    assert isinstance(fake, QTensor)
    assert isinstance(integer, QTensor)
    assert fake.shape == integer.shape
    apart = (fake.int_repr().to(torch.int64) - integer.int_repr().to(torch.int64)).abs()
    assert int(apart.max()) <= 1
    assert float((apart == 0).double().mean()) >= share


def fake_quantized_float64(x: np.ndarray, scale: float, code_range: tuple[int, int] = (-128, 127)) -> np.ndarray:
    """The fake-quant formula in float64, with the float32 scale as it is stored."""
    s = np.float64(np.float32(scale))
    return np.clip(np.rint(x * (1 / s)), *code_range) * s


def assert_within_one_step(fake: Tensor, expected: np.ndarray, scale: float, share: float = 0.999) -> None:
    """Float results on the grid: equal to the float64 formula but for ties that float32 turns the other way."""
    apart = np.abs(fake.dequantize().detach().double().numpy() - expected) / scale
    assert apart.max() <= 1.001
    assert (apart < 0.01).mean() >= share
