"""What the test file of every table operator checks: all codes against numpy, both front ends, gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from profiler.quant import (
    DeQuantStub,
    QTensor,
    QuantStub,
    convert_fx,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_16bit_fake_quant_qconfig,
)
from profiler.quant.affine import qinfo
from profiler.quant.ops.functional import FunctionOp
from profiler.quant.ops.registry import get_spec, spec_of_function
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.op_forms import assert_codes_equal, assert_nearly_same_codes, forms_of, on_grid, quantized
from tests.quant.stages import FRONT_ENDS

CALIB_QCONFIGS = {"qint8": default_calib_8bit_fake_quant_qconfig, "qint16": default_calib_16bit_fake_quant_qconfig}
DTYPES = (("qint8", "qint8"), ("qint8", "qint16"), ("qint16", "qint8"), ("qint16", "qint16"))


def every_code(dtype: str) -> Tensor:
    """All codes in order."""
    info = qinfo(dtype)
    return torch.arange(info.quant_min, info.quant_max + 1, dtype=torch.int32).to(info.torch_dtype)


def real_values(dtype: str, scale: float) -> np.ndarray:
    """What all codes stand for: float32 products, as float64."""
    return (every_code(dtype).numpy().astype(np.float32) * np.float32(scale)).astype(np.float64)


def codes_of(y: np.ndarray, scale: float, dtype: str = "qint8") -> np.ndarray:
    """Codes of real values: ties to even, ends of the range for what lies outside, 0 for NaN."""
    info = qinfo(dtype)
    with np.errstate(over="ignore"):
        steps = np.nan_to_num(y, nan=0.0, posinf=np.inf, neginf=-np.inf).astype(np.float32)
        steps = steps * (np.float32(1) / np.float32(scale))
    return np.clip(np.rint(steps), info.quant_min, info.quant_max).astype(np.int64)


class OneFunction(nn.Module):
    """A function between stubs."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.call = function

    def forward(self, x: Any) -> Any:
        return self.dequant(self.call(self.quant(x)))


class TableTests:
    """Tests of one operator.

    Attributes:
        name: of the operator.
        truth: the function in numpy, float64.
        spellings: how user code writes it.
        modules: float modules that are this operator, with the constants that `truth` has.
        bound: keyword arguments of the function that `truth` has.
        x_scales: int8 input scales; int16 uses a 256th.
    """

    name: str
    truth: Callable[[np.ndarray], np.ndarray]
    spellings: ClassVar[tuple[Callable[[Any], Any], ...]] = ()
    modules: ClassVar[tuple[nn.Module, ...]] = ()
    bound: ClassVar[dict[str, Any]] = {}
    x_scales: ClassVar[tuple[float, ...]] = (0.02, 0.11)

    def cases(self) -> Any:
        """(form factory argument, x dtype, x scale, out dtype, out scale, real results) of everything to try."""
        for x_dtype, out_dtype in DTYPES:
            for s in self.x_scales:
                x_scale = s if x_dtype == "qint8" else s / 256
                with np.errstate(all="ignore"):
                    y = type(self).truth(real_values(x_dtype, x_scale))
                finite = np.abs(y[np.isfinite(y)])
                finite = finite[finite < 1e30]
                fits = max(float(finite.max()), 1e-3) / qinfo(out_dtype).half_range
                for out_scale in (fits, fits / 3):  # the second clips
                    yield x_dtype, x_scale, out_dtype, out_scale, y

    def share(self, out_dtype: str) -> float:
        """Least share of equal codes: the float32 arithmetic of a fake-quant model turns some ties of int16 steps."""
        return 0.999 if out_dtype == "qint8" else 0.99

    def op(self) -> nn.Module:
        """The operator as a float module."""
        return FunctionOp(self.name, None, dict(self.bound))

    def test_integer_every_code_equals_formula(self) -> None:
        for x_dtype, x_scale, out_dtype, out_scale, y in self.cases():
            integer = forms_of(self.op(), out_scale, out_dtype)[1]
            y_q = integer(quantized(every_code(x_dtype), x_scale, x_dtype))
            expected = codes_of(y, out_scale, out_dtype)
            if out_dtype == "qint8" and x_dtype == "qint8":
                assert_codes_equal(y_q, expected)
            assert y_q.plain.dtype == qinfo(out_dtype).torch_dtype
            apart = np.abs(y_q.plain.numpy().astype(np.int64) - expected)
            assert apart.max() <= 1  # numpy and torch may differ in the last bit of float64: a tie may turn
            assert (apart == 0).mean() >= 0.9999

    def test_fake_quant_every_code_is_the_integer_form(self) -> None:
        for x_dtype, x_scale, out_dtype, out_scale, _ in self.cases():
            fake, integer = forms_of(self.op(), out_scale, out_dtype)
            y_fq = fake(on_grid(every_code(x_dtype), x_scale, x_dtype))
            y_q = integer(quantized(every_code(x_dtype), x_scale, x_dtype))
            assert bool(torch.isfinite(y_fq.plain).all())
            assert_nearly_same_codes(y_fq, y_q, self.share(out_dtype))

    def test_fake_quant_every_code_equals_formula(self) -> None:
        for x_dtype, x_scale, out_dtype, out_scale, y in self.cases():
            fake = forms_of(self.op(), out_scale, out_dtype)[0]
            y_fq = fake(on_grid(every_code(x_dtype), x_scale, x_dtype)).int_repr().numpy().astype(np.int64)
            apart = np.abs(y_fq - codes_of(y, out_scale, out_dtype))
            assert apart.max() <= 1
            assert (apart == 0).mean() >= (self.share(out_dtype))

    def test_modules_are_the_operator(self) -> None:
        for module in self.modules:
            for x_dtype, x_scale, out_dtype, out_scale, _ in self.cases():
                x = quantized(every_code(x_dtype), x_scale, x_dtype)
                of_module = forms_of(module, out_scale, out_dtype)[1](x.like(x.plain.clone()))
                assert torch.equal(of_module.plain, forms_of(self.op(), out_scale, out_dtype)[1](x).plain)

    def test_gradient_is_finite_and_that_of_the_function_inside_the_range(self) -> None:
        fake = forms_of(self.op(), 1e3)[0]
        x = (every_code("qint8").float() * 0.02).requires_grad_()
        fake(QTensor.wrap(x * 1, torch.tensor(0.02), "qint8")).dequantize().sum().backward()
        assert x.grad is not None
        assert bool(torch.isfinite(x.grad).all())
        x64 = x.detach().double().requires_grad_()
        y64 = self.spelled(x64)
        y64.sum().backward()
        assert x64.grad is not None
        ordinary = (y64.abs() < 1e4) & (x64.grad.abs() < 1e3)
        torch.testing.assert_close(x.grad.double()[ordinary], x64.grad[ordinary], rtol=1e-4, atol=1e-5)

    def spelled(self, x: Tensor) -> Tensor:
        """The torch function itself."""
        result: Tensor = self.spellings[0](x * 1)
        return result

    def test_both_front_ends_every_spelling_runs_and_converts(self) -> None:
        torch.manual_seed(0)
        batches = [torch.rand(4, 3, 5, 5) * 4 - 1, torch.rand(4, 3, 5, 5) * 4 - 2]
        for stage, convert in FRONT_ENDS.values():
            for function in (*self.spellings, *self.modules):
                calib = stage(OneFunction(function), batches)
                operators = [m for m in calib.modules() if isinstance(m, FunctionOp)]
                assert [spec_of_function(m.function) for m in operators] == [get_spec(self.name)]
                converted = convert(calib)
                y_fq, y_q = calib(batches[0]), converted(batches[0])
                assert type(y_q) is Tensor
                assert y_q.shape == batches[0].shape
                step = float(operators[0].activation_post_process.scale)
                apart = (y_fq - y_q).abs() / step
                assert float(apart.max()) < 1.01
                assert float((apart < 0.01).float().mean()) >= 0.99
                assert_equals_onnx(converted, batches[0], num_codes=2)

    def test_onnx_runtime_every_code_equals_integer_form(self) -> None:
        for dtype in ("qint8", "qint16"):
            x = torch.from_numpy(real_values(dtype, self.x_scales[0])).float()
            calib = FRONT_ENDS["fx"][0](OneFunction((*self.spellings, *self.modules)[0]), [x], CALIB_QCONFIGS[dtype])
            assert_equals_onnx(convert_fx(calib), x, num_codes=2)

    def test_integer_awkward_shapes_keep_shape(self) -> None:
        integer = forms_of(self.op(), 0.1)[1]
        for x_q in (torch.zeros(0, 3, dtype=torch.int8), torch.tensor(3, dtype=torch.int8)):
            assert integer(quantized(x_q, 0.1)).shape == x_q.shape
        strided = every_code("qint8").reshape(16, 16).t()[::2]
        y = integer(quantized(strided, 0.1)).plain
        assert torch.equal(y, integer(quantized(strided.contiguous(), 0.1)).plain)
