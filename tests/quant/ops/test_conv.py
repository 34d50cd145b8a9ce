from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from profiler.errors import PrepareError, UnsupportedOpError
from profiler.quant import QTensor, fuse_known_modules
from profiler.quant.ops.epilogue import Epilogue
from profiler.quant.qconfig import QConfig
from profiler.quant.requantize import FLOAT32_EXACT
from profiler.quant.swap import fake_quant_form
from tests.quant.op_forms import (
    QCONFIGS,
    assert_codes_equal,
    assert_nearly_same_codes,
    assert_within_one_step,
    codes,
    fake_quantized_float64,
    forms_of,
    on_grid,
    quantized,
)
from tests.quant.ops.gemm_cases import accumulator, bias_in_steps, expected_codes, scale_that_fits, scales_and_codes

X_SCALE = 0.0371
GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "strided": {"stride": 2},
    "padded": {"padding": 1},
    "uneven": {"kernel_size": (1, 3), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    "dilated": {"dilation": 2, "padding": 2},
    "grouped": {"groups": 2},
    "depthwise": {"groups": 4},
    "depthwise_multiplier": {"groups": 4, "out_channels": 8},
    "reflect": {"padding": 2, "padding_mode": "reflect"},
    "replicate": {"padding": (1, 2), "padding_mode": "replicate"},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "same": {"padding": "same", "kernel_size": 4},
    "no_bias": {"bias": False},
    "pointwise": {"kernel_size": 1},
}


def conv(**kwargs: Any) -> nn.Conv2d:
    return nn.Conv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, **kwargs})


def with_epilogue(module: nn.Conv2d, activation: str, has_add: bool = False) -> Any:
    fused: Any = fuse_known_modules([module, nn.ReLU6() if activation == "relu6" else nn.ReLU()])[0]
    fused.epilogue = Epilogue(has_add, activation)
    return fused


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
def test_conv_integer_form_equals_integer_arithmetic(geometry: str, dtype: str) -> None:
    module = conv(**GEOMETRIES[geometry])
    x_q = codes((2, 4, 9, 11), dtype=dtype)
    x_scale = X_SCALE if dtype == "qint8" else X_SCALE / 256
    out_scale = scale_that_fits(module, x_q, x_scale, dtype)
    _, integer = forms_of(module, out_scale, dtype)
    expected = expected_codes(module, x_q, x_scale, out_scale, dtype=dtype)
    assert_codes_equal(integer(quantized(x_q, x_scale, dtype)), expected, dtype)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_conv_fake_quant_form_equals_formula_in_float64(geometry: str) -> None:
    module = conv(**GEOMETRIES[geometry])
    x_q = codes((2, 4, 9, 11))
    out_scale = scale_that_fits(module, x_q, X_SCALE)
    fake, _ = forms_of(module, out_scale)
    w_scale, w_q = scales_and_codes(module)
    double = conv(**GEOMETRIES[geometry]).double()
    double.weight.data = torch.tensor(w_q * w_scale.astype(np.float64).reshape(-1, 1, 1, 1))
    if module.bias is not None:
        double.bias.data = torch.tensor(bias_in_steps(module, X_SCALE))
    y = double(x_q.double() * float(np.float32(X_SCALE))).detach().numpy()
    assert_within_one_step(fake(on_grid(x_q, X_SCALE)), fake_quantized_float64(y, out_scale), out_scale)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
def test_conv_integer_and_fake_quant_differ_by_one_code_at_most(geometry: str, dtype: str) -> None:
    module = conv(**GEOMETRIES[geometry])
    x_q, x_scale = codes((8, 4, 15, 13), dtype=dtype), X_SCALE if dtype == "qint8" else X_SCALE / 256
    fake, integer = forms_of(module, scale_that_fits(module, x_q, x_scale, dtype), dtype)
    share = 0.97  # an int16 code is as fine as the float32 rounding of the products
    if dtype == "qint8":
        share = 0.999
    assert_nearly_same_codes(fake(on_grid(x_q, x_scale, dtype)), integer(quantized(x_q, x_scale, dtype)), share)


@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("has_add", [False, True])
def test_conv_integer_fused_epilogue_equals_integer_arithmetic(activation: str, has_add: bool) -> None:
    module = conv(padding=1)
    x_q, other_q = codes((2, 4, 8, 8)), codes((2, 4, 8, 8), seed=1)
    out_scale, other_scale = 6.9 / 127, 0.0433
    fake, integer = forms_of(with_epilogue(module, activation, has_add), out_scale)
    operands = (quantized(other_q, other_scale),) if has_add else ()
    other = (other_q, other_scale) if has_add else None
    expected = expected_codes(module, x_q, X_SCALE, out_scale, activation=activation, other=other)
    result = integer(quantized(x_q, X_SCALE), *operands)
    assert_codes_equal(result, expected)
    fake_operands = (on_grid(other_q, other_scale),) if has_add else ()
    assert_nearly_same_codes(fake(on_grid(x_q, X_SCALE), *fake_operands), result)


def test_conv_integer_fused_add_does_not_depend_on_the_carrier() -> None:
    ulp = 2.0**-23  # float32(other_scale / acc_scale) is 1.5 and makes ties, the same quotient in float64 does not
    fake, _ = forms_of(with_epilogue(conv(in_channels=1, out_channels=1, kernel_size=1), "relu", has_add=True), 1.0)
    fake.weight_fake_quant.set_qparams(1 + ulp)
    x_q, other_q = codes((1, 1, 64, 64)), codes((1, 1, 64, 64), seed=1)
    results = []
    for precision in ("highest", "high"):  # "high" refuses float32 as a carrier
        torch.set_float32_matmul_precision(precision)
        try:
            results.append(fake.to_integer()(quantized(x_q, 1.0), quantized(other_q, 1.5 + ulp)).plain)
        finally:
            torch.set_float32_matmul_precision("highest")
    assert torch.equal(*results)


def test_conv_integer_high_precision_output_is_accumulator_times_scale() -> None:
    module = conv(out_channels=5)
    x_q = codes((2, 4, 9, 9))
    _, integer = forms_of(module, None)
    acc, acc_scale = accumulator(module, x_q, X_SCALE)
    y = integer(quantized(x_q, X_SCALE))
    assert type(y) is torch.Tensor
    assert y.dtype == torch.float32
    np.testing.assert_array_equal(y.numpy(), acc.astype(np.float32) * acc_scale)


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_conv_integer_high_precision_output_with_activation_clamps_the_accumulator(activation: str) -> None:
    module = conv()
    x_q = codes((2, 4, 9, 9))
    _, integer = forms_of(with_epilogue(module, activation), None)
    acc, acc_scale = accumulator(module, x_q, X_SCALE)
    acc = np.maximum(acc, 0)
    if activation == "relu6":
        acc = np.minimum(acc, np.rint(np.float32(6) / acc_scale).astype(np.int64))
    np.testing.assert_array_equal(integer(quantized(x_q, X_SCALE)).numpy(), acc.astype(np.float32) * acc_scale)


def test_conv_integer_large_fan_in_leaves_float32_and_stays_exact() -> None:
    module = conv(in_channels=512, out_channels=3, kernel_size=3)
    module.weight.data = module.weight.data.sign() * 0.1  # every code at the end of the range
    x_q = torch.full((1, 512, 4, 4), -128, dtype=torch.int8)
    x_q[:, ::2] = 127
    _, integer = forms_of(module, 3.3)
    y = integer(quantized(x_q, X_SCALE))
    (plan,) = integer._plans.by_scale.values()
    assert FLOAT32_EXACT < 512 * 9 * 128 * 127
    assert plan.carrier is torch.float64
    assert_codes_equal(y, expected_codes(module, x_q, X_SCALE, 3.3))


def test_conv_integer_small_fan_in_is_carried_in_float32() -> None:
    _, integer = forms_of(conv(), 0.1)
    integer(quantized(codes((1, 4, 5, 5)), X_SCALE))
    (plan,) = integer._plans.by_scale.values()
    assert plan.carrier is torch.float32


def test_conv_integer_weights_are_int8_tensors() -> None:
    _, integer = forms_of(conv(), 0.1)
    assert integer.weight.dtype == torch.int8
    assert dict(integer.named_parameters()) == {}
    assert list(integer.state_dict()) == ["weight", "weight_scale", "bias", "out_scale"]


@pytest.mark.parametrize("weight_dtype", ["qint8", "qint16"])
def test_conv_integer_dead_channel_with_large_bias_keeps_all_channels_right(weight_dtype: str) -> None:
    module = conv()
    module.weight.data[1] = 0
    module.weight.data[2] = 1e-9
    module.bias.data[1], module.bias.data[2] = 3.0, -40.0
    default = QCONFIGS["qint8"]
    qconfig = QConfig(activation=default.activation, weight=default.weight.with_args(dtype=weight_dtype))
    fake: Any = fake_quant_form(module.eval(), qconfig)
    fake.eval().activation_post_process.set_qparams(0.35)
    fake.weight_fake_quant.calibrate_on(module.weight)
    x_q = codes((2, 4, 9, 9))
    y = fake.to_integer()(quantized(x_q, X_SCALE))
    assert set(y.plain[:, 1].unique().tolist()) == {round(3.0 / 0.35)}
    assert set(y.plain[:, 2].unique().tolist()) == {round(-40.0 / 0.35)}
    assert_nearly_same_codes(fake(on_grid(x_q, X_SCALE)), y)


def test_conv_integer_empty_batch_gives_empty_codes() -> None:
    _, integer = forms_of(conv(padding=1), 0.1)
    y = integer(quantized(codes((0, 4, 6, 6)), X_SCALE))
    assert_codes_equal(y, np.zeros((0, 4, 6, 6), np.int64))


def test_conv_integer_unbatched_input_equals_batched() -> None:
    module = conv()
    x_q = codes((4, 9, 9))
    _, integer = forms_of(module, 0.1)
    batched = integer(quantized(x_q[None], X_SCALE)).plain[0]
    assert torch.equal(integer(quantized(x_q, X_SCALE)).plain, batched)


def test_conv_integer_second_input_scale_gets_its_own_plan() -> None:
    module = conv()
    x_q = codes((2, 4, 7, 7))
    _, integer = forms_of(module, 0.05)
    for scale in (0.01, 0.02, 0.01):
        assert_codes_equal(integer(quantized(x_q, scale)), expected_codes(module, x_q, scale, 0.05))


def test_conv_integer_loaded_weights_are_used_after_a_forward() -> None:
    first, second = conv(), conv()
    x_q = codes((2, 4, 7, 7))
    _, integer = forms_of(first, 0.05)
    _, other = forms_of(second, 0.05)
    integer(quantized(x_q, X_SCALE))
    integer.load_state_dict(other.state_dict())
    assert_codes_equal(integer(quantized(x_q, X_SCALE)), expected_codes(second, x_q, X_SCALE, 0.05))


def test_conv_integer_float_input_is_refused() -> None:
    _, integer = forms_of(conv(), 0.1)
    with pytest.raises(UnsupportedOpError, match=r"Conv2d: a converted op got Tensor with float values.*QuantStub"):
        integer(torch.rand(1, 4, 5, 5))


def test_conv_without_weight_factory_is_refused() -> None:
    with pytest.raises(PrepareError, match="Conv2d: the qconfig has no weight fake quant"):
        fake_quant_form(conv(), QConfig(activation=QCONFIGS["qint8"].activation))


def test_conv_fused_class_names_are_those_users_know() -> None:
    module = conv()
    assert with_epilogue(module, "relu", has_add=True)._get_name() == "ConvAddReLU2d"
    assert with_epilogue(module, "relu6")._get_name() == "ConvReLU62d"


def test_conv_fake_quant_gradient_reaches_weight_bias_and_input() -> None:
    module = conv()
    fake, _ = forms_of(module, 0.05)
    x = torch.rand(2, 4, 6, 6, requires_grad=True)
    fake(QTensor.wrap(x, torch.tensor(0.01), "qint8")).dequantize().square().sum().backward()
    assert all(bool(t.grad.abs().sum() > 0) for t in (module.weight, module.bias, x))


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.sampled_from([1, 2, 3, 6]),
    size=st.tuples(st.integers(8, 12), st.integers(8, 12)),
    x_scale=st.floats(1e-4, 10),
    seed=st.integers(0, 99),
)
def test_conv_integer_any_geometry_equals_integer_arithmetic(
    kernel: Any, stride: Any, padding: Any, dilation: Any, groups: int, size: Any, x_scale: float, seed: int
) -> None:
    torch.manual_seed(seed)
    module = nn.Conv2d(6, 6, kernel, stride, padding, dilation, groups)
    x_q = codes((1, 6, *size), seed)
    out_scale = scale_that_fits(module, x_q, x_scale)
    _, integer = forms_of(module, out_scale)
    assert_codes_equal(integer(quantized(x_q, x_scale)), expected_codes(module, x_q, x_scale, out_scale))


def test_conv_fused_float_form_equals_conv_bn_relu() -> None:
    module, norm = conv(), nn.BatchNorm2d(4)
    norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.3, 3)
    norm.weight.data.uniform_(-2, 2), norm.bias.data.uniform_(-1, 1)
    x = torch.randn(2, 4, 9, 9)
    expected = F.relu(norm.eval()(module(x)))
    fused = fuse_known_modules([module, norm, nn.ReLU()])[0]
    torch.testing.assert_close(fused(x), expected, rtol=1e-5, atol=1e-5)
