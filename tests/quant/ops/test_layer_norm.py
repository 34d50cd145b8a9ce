from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from profiler.quant import DeQuantStub, QuantStub
from tests.quant.op_forms import assert_codes_equal, assert_nearly_same_codes, codes, forms_of, on_grid, quantized
from tests.quant.ops.norm_truth import array, standardized
from tests.quant.ops.parameter_cases import check_forms, check_front_ends, check_training_and_checkpoints, randomized
from tests.quant.stages import FRONT_ENDS

MODULES = {
    "last": nn.LayerNorm(24), "two": nn.LayerNorm((5, 24)), "no_bias": nn.LayerNorm(24, bias=False),
    "plain": nn.LayerNorm(24, elementwise_affine=False), "eps": nn.LayerNorm(24, eps=0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_layer_norm_integer_equals_float64_and_fake_quant(name: str) -> None:
    module: Any = randomized(MODULES[name])
    axes = tuple(range(-len(module.normalized_shape), 0))
    check_forms(
        module,
        lambda x: standardized(x, axes, module.eps) * array(module.weight, 1) + array(module.bias, 0),
        (7, 5, 24),
        4.0,
    )


def test_layer_norm_runs_in_both_front_ends() -> None:
    for dtype in ("qint8", "qint16"):
        check_front_ends(randomized(nn.LayerNorm(5)), dtype)
        check_front_ends(lambda x: F.layer_norm(x, (6, 5)), dtype)


def test_layer_norm_trains_and_keeps_its_keys() -> None:
    check_training_and_checkpoints(nn.LayerNorm(5))


class WithFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.gain, self.shift = nn.Parameter(torch.linspace(0.5, 2, 16)), nn.Parameter(torch.linspace(-1, 1, 16))

    def forward(self, x: Any) -> Any:
        return self.dequant(F.layer_norm(self.quant(x), (16,), self.gain, self.shift))


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_layer_norm_function_keeps_its_parameters_in_float(front_end: str) -> None:
    stage, convert = FRONT_ENDS[front_end]
    torch.manual_seed(0)
    x = torch.randn(64, 16)
    model = WithFunction()
    calib = stage(model, [x])
    y_fq, y_q = calib(x), convert(calib)(x)
    step = float(calib._generated_layer_norm_0.activation_post_process.scale)
    assert float((y_fq - y_q).detach().abs().max()) <= 1.01 * step
    assert float((model(x) - y_q).detach().abs().max()) <= 3 * step
    y_fq.sum().backward()
    assert "gain" in dict(calib.named_parameters())
    assert float(calib.gain.grad.abs().sum()) > 0


def test_layer_norm_constant_row_gives_the_bias() -> None:
    module = randomized(nn.LayerNorm(4))
    _, integer = forms_of(module, 0.02)
    y = integer(quantized(torch.full((2, 4), 77, dtype=torch.int8), 0.1))
    expected = np.rint(array(module.bias, 0) / np.float64(np.float32(0.02)))
    assert_codes_equal(y, np.broadcast_to(expected, (2, 4)))


def test_layer_norm_constant_row_without_eps_is_zero_not_nan() -> None:
    _, integer = forms_of(nn.LayerNorm(4, eps=0.0), 0.02)
    assert integer(quantized(torch.full((2, 4), -3, dtype=torch.int8), 0.1)).plain.abs().max() == 0


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=0, max_size=3), st.integers(1, 40), st.floats(-8, 8), st.sampled_from([8, 16])
)
def test_layer_norm_any_shape_and_scale(lead: list[int], width: int, exponent: float, bits: int) -> None:
    fake, integer = forms_of(nn.LayerNorm(width), 0.03)
    x_q, x_scale = codes((*lead, width), seed=width, dtype=f"qint{bits}"), 10**exponent
    y_q = integer(quantized(x_q, x_scale, f"qint{bits}"))
    assert y_q.shape == x_q.shape
    if x_q.numel():
        x = x_q.numpy().astype(np.float64) * np.float64(np.float32(x_scale))
        expected = np.clip(np.rint(standardized(x, (-1,), 1e-5) / np.float64(np.float32(0.03))), -128, 127)
        assert np.abs(y_q.plain.numpy() - expected).max() <= 1
    if x_q.numel() and width > 1 and -4 < exponent < 4:
        assert_nearly_same_codes(fake(on_grid(x_q, x_scale, f"qint{bits}")), y_q, 0.95)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_layer_norm_outside_the_stubs_stays_float(front_end: str) -> None:
    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.quant, self.linear, self.dequant = (
                nn.LayerNorm(8),
                QuantStub(),
                nn.Linear(8, 8),
                DeQuantStub(),
            )
            self.last = nn.LayerNorm(8)

        def forward(self, x: Any) -> Any:
            return self.last(self.dequant(self.linear(self.quant(self.norm(x)))))

    stage, convert = FRONT_ENDS[front_end]
    torch.manual_seed(0)
    model, x = Outside().eval(), torch.randn(5, 8)
    calib = stage(model, [x])
    torch.testing.assert_close(convert(calib)(x), calib(x), rtol=0, atol=0.02)
    torch.testing.assert_close(calib.norm(x), model.norm(x))
