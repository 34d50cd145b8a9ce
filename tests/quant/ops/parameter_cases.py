"""What tests of functions over rows and with parameters share: both front ends, QAT, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from profiler.quant import (
    DeQuantStub,
    FakeQuantState,
    QuantStub,
    convert,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_16bit_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
    prepare_qat,
    set_fake_quantize,
)
from profiler.quant.affine import qinfo
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.op_forms import assert_nearly_same_codes, codes, forms_of, on_grid, quantized
from tests.quant.stages import FRONT_ENDS, calibrate

DTYPES = (("qint8", "qint8"), ("qint8", "qint16"), ("qint16", "qint8"), ("qint16", "qint16"))
X_SCALES = {"qint8": 0.05, "qint16": 0.0004}
SHARES = {"qint8": 0.999, "qint16": 0.97}  # float32 arithmetic of a fake-quant model turns some ties of int16 steps
QCONFIGS = {"qint8": default_calib_8bit_fake_quant_qconfig, "qint16": default_calib_16bit_fake_quant_qconfig}


class Between(nn.Module):
    """A module or function between stubs, behind a convolution that makes it something to train."""

    def __init__(self, op: Callable[[Any], Any], channels: int = 6) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv, self.op = nn.Conv2d(3, channels, 1), op

    def forward(self, x: Any) -> Any:
        return self.dequant(self.op(self.conv(self.quant(x))))


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """Parameters and running statistics that are not the neutral ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 1.5 + 0.1)
    return module


def check_forms(
    module: nn.Module, truth: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], top: float
) -> None:
    """Integer form against float64 on the codes, fake-quant against the integer form, for all pairs of dtypes.

    Args:
        module: float module.
        truth: the function in numpy float64.
        shape: of the input.
        top: largest output that fits the code range; about the largest there is.
    """
    for x_dtype, out_dtype in DTYPES:
        x_scale, out_scale = X_SCALES[x_dtype], top / qinfo(out_dtype).half_range
        x_q = codes(shape, dtype=x_dtype)
        fake, integer = forms_of(module, out_scale, out_dtype)
        y_q = integer(quantized(x_q, x_scale, x_dtype))
        real = truth(x_q.numpy().astype(np.float64) * np.float64(np.float32(x_scale)))
        info = qinfo(out_dtype)
        expected = np.clip(np.rint(real / np.float64(np.float32(out_scale))), info.quant_min, info.quant_max)
        assert y_q.plain.dtype == info.torch_dtype
        assert y_q.shape == x_q.shape
        apart = np.abs(y_q.plain.numpy().astype(np.int64) - expected)
        assert apart.max() <= 1
        assert (apart == 0).mean() >= 0.9999
        assert_nearly_same_codes(fake(on_grid(x_q, x_scale, x_dtype)), y_q, SHARES[out_dtype])


def check_front_ends(op: Callable[[Any], Any], dtype: str = "qint8") -> None:
    """Prepared, calibrated and converted in eager and fx: the op is quantized and both stages agree."""
    torch.manual_seed(0)
    batches = [torch.randn(4, 3, 6, 5), torch.randn(4, 3, 6, 5)]
    for front_end, (stage, to_integers) in FRONT_ENDS.items():
        model = Between(op)
        calib = stage(model, batches, QCONFIGS[dtype])
        converted = to_integers(calib)
        y_fq, y_q = calib(batches[0]), converted(batches[0])
        integer_forms = [type(m).__name__ for m in converted.modules() if hasattr(m, "out_dtype")]
        assert len(integer_forms) == 3, (front_end, integer_forms)  # the stub, the convolution and the op
        assert not [e for e in calib.quant_effects if e.reason], front_end
        apart = (y_fq - y_q).detach().abs()
        assert float(apart.max()) <= 0.05 * float(y_fq.detach().abs().max()), front_end
        float_y = model.eval()(batches[0]).detach()
        error = float((y_q - float_y).square().mean().sqrt() / float_y.square().mean().sqrt())
        assert error < 0.05, (front_end, error)
        assert_equals_onnx(converted, batches[0], num_codes=3)


def check_training_and_checkpoints(module: nn.Module) -> None:
    """Same keys as the float model; calib checkpoint loads into qat; its parameters train; convert agrees."""
    torch.manual_seed(0)
    model, x = Between(randomized(module)), torch.randn(4, 3, 6, 5)
    own = {f"op.{name}" for name in module.state_dict()}
    model.qconfig = default_calib_8bit_fake_quant_qconfig
    calib = calibrate(prepare_qat(model), [x])
    assert own <= set(calib.state_dict())
    model.qconfig = default_qat_8bit_fake_quant_qconfig
    qat = prepare_qat(model)
    qat.load_state_dict(calib.state_dict())
    assert torch.equal(qat.op.activation_post_process.scale, calib.op.activation_post_process.scale)
    qat.train()
    optimizer = torch.optim.SGD(qat.parameters(), 0.05)
    before = {name: p.detach().clone() for name, p in qat.op.named_parameters()}
    (qat(x) - 0.3).square().mean().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in qat.parameters() if p.grad is not None)
    optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in qat.op.named_parameters())
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before.values(), strict=True))
    qat.eval()
    set_fake_quantize(qat, FakeQuantState.VALIDATION)
    converted = convert(qat)
    assert list(converted.parameters()) == []
    step = float(qat.op.activation_post_process.scale)
    conv_step = float(qat.conv.activation_post_process.scale)
    apart = (converted(x) - qat(x)).detach().abs()
    assert float((apart < 0.01 * step).float().mean()) > 0.9
    assert float(apart.max()) <= step + 20 * conv_step
    assert list(qat.state_dict()) == list(prepare_and_load(model, qat.state_dict()).state_dict())


def prepare_and_load(model: nn.Module, state: dict[str, Any]) -> nn.Module:
    """A fresh qat model with a checkpoint."""
    qat = prepare_qat(model)
    qat.load_state_dict(state)
    return qat
