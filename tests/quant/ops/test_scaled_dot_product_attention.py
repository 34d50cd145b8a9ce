from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from profiler.errors import NotCalibratedError
from profiler.quant import DeQuantStub, QTensor, QuantStub, set_march
from profiler.quant.ops.functional import FunctionOp
from profiler.quant.states import named_fake_quants
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.ops.composite_cases import (
    as_codes,
    assert_inner_ops_agree,
    assert_same_floats,
    calibrated,
    form_of,
    quantized_input,
    sqnr_db,
)
from tests.quant.stages import FRONT_ENDS

SHAPES = ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6))  # q, k, v: [N, H, L, E], [N, H, S, E], [N, H, S, D]
CAUSAL = torch.ones(5, 7, dtype=torch.bool).tril()
PADDED = torch.tensor([[True] * 7, [True] * 4 + [False] * 3]).reshape(2, 1, 1, 7)
MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "causal": {"is_causal": True},
    "bool": {"attn_mask": CAUSAL},
    "padded": {"attn_mask": PADDED},
    "padded_causal": {"attn_mask": PADDED, "is_causal": True},
    "infinite": {"attn_mask": torch.zeros(5, 7).masked_fill(~CAUSAL, -math.inf)},
    "large": {"attn_mask": torch.zeros(5, 7).masked_fill(~CAUSAL, -1e9)},
    "bias": {"attn_mask": torch.linspace(-2, 2, 35).reshape(5, 7).masked_fill(~CAUSAL, torch.finfo(torch.float32).min)},
    "scale": {"scale": 0.2},
}


def operands() -> list[Tensor]:
    return [torch.randn(shape) for shape in SHAPES]


def function() -> FunctionOp:
    return FunctionOp("scaled_dot_product_attention", F.scaled_dot_product_attention)


def calls_with(kwargs: dict[str, Any]) -> list[Any]:
    return [(tuple(map(quantized_input, operands())), kwargs) for _ in range(3)]


def expected_float64(q: Tensor, k: Tensor, v: Tensor, blocked: np.ndarray | None = None) -> np.ndarray:
    """softmax(q k^T / sqrt(E)) v from the formula."""
    left, right, values = (x.double().numpy() for x in (q, k, v))
    scores = left @ right.swapaxes(-1, -2) / np.sqrt(left.shape[-1])
    if blocked is not None:
        scores = np.where(blocked, -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ values


@pytest.mark.parametrize("mask", MASKS)
def test_attention_decomposition_equals_torch(mask: str) -> None:
    if mask == "padded_causal":  # torch takes only one of both
        q, k, v = operands()
        both = PADDED & CAUSAL
        reference = F.scaled_dot_product_attention(q, k, v, attn_mask=both)
        assert_same_floats(form_of(function())(q, k, v, **MASKS[mask]), reference)
        return
    args = operands()
    assert_same_floats(form_of(function())(*args, **MASKS[mask]), F.scaled_dot_product_attention(*args, **MASKS[mask]))


def test_attention_decomposition_equals_the_formula_in_float64() -> None:
    q, k, v = operands()
    blocked = ~CAUSAL.numpy()
    np.testing.assert_allclose(form_of(function())(q, k, v).numpy(), expected_float64(q, k, v), atol=1e-6)
    actual = form_of(function())(q, k, v, attn_mask=CAUSAL).numpy()
    np.testing.assert_allclose(actual, expected_float64(q, k, v, blocked), atol=1e-6)


def test_attention_shared_heads_equal_torch() -> None:
    q, k, v = torch.randn(2, 6, 5, 4), torch.randn(2, 2, 7, 4), torch.randn(2, 2, 7, 4)
    reference = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    assert_same_floats(form_of(function())(q, k, v, enable_gqa=True), reference)
    args = tuple(map(quantized_input, (q, k, v)))
    assert_inner_ops_agree(calibrated(function(), [(args, {"enable_gqa": True})]), args, {"enable_gqa": True})


@settings(max_examples=15, deadline=None)
@given(
    lead=st.sampled_from([(), (2,), (2, 3), (1, 2, 2)]),
    sizes=st.tuples(*[st.integers(1, 5)] * 4),
    is_causal=st.booleans(),
)
def test_attention_any_shape_equals_torch_and_integer_form(lead: Any, sizes: Any, is_causal: bool) -> None:
    num_queries, num_keys, width, depth = sizes
    q, k = torch.randn(*lead, num_queries, width), torch.randn(*lead, num_keys, width)
    v, kwargs = torch.randn(*lead, num_keys, depth), {"is_causal": is_causal}
    assert_same_floats(form_of(function())(q, k, v, **kwargs), F.scaled_dot_product_attention(q, k, v, **kwargs))
    args = tuple(map(quantized_input, (q, k, v)))
    assert_inner_ops_agree(calibrated(function(), [(args, kwargs)]), args, kwargs)


@pytest.mark.parametrize("mask", MASKS)
def test_attention_inner_ops_fed_the_same_codes_are_at_most_one_code_apart(mask: str) -> None:
    calls = calls_with(MASKS[mask])
    form = calibrated(function(), calls)
    whole = assert_inner_ops_agree(form, *calls[0])
    assert max(map(abs, whole)) <= 1
    assert form.scores.activation_post_process.dtype == "qint16"


def test_attention_error_against_the_formula_is_that_of_int8() -> None:
    calls = [(tuple(quantized_input(torch.randn(4, 2, 16, 32)) for _ in range(3)), {}) for _ in range(3)]
    y = calibrated(function(), calls)(*calls[0][0])
    reference = torch.from_numpy(expected_float64(*(x.plain for x in calls[0][0]))).float()
    assert sqnr_db(reference=reference, test=y.plain) > 30.0


@pytest.mark.parametrize("mask", ["bool", "infinite", "large", "bias"])
def test_attention_masked_values_have_no_influence_in_any_form(mask: str) -> None:
    calls = calls_with(MASKS[mask])
    form = calibrated(function(), calls)
    (q, k, v), kwargs = calls[0]
    other_k, other_v = (x.like(x.plain.clone()) for x in (k, v))
    for x in (other_k, other_v):
        x.plain[..., 5:, :] = -x.plain[..., 5:, :]  # behind the last position that any query may look at
    for run, convert in ((form, lambda x: x), (form.to_integer(), as_codes)):
        first, second = run(*convert((q, k, v)), **kwargs), run(*convert((q, other_k, other_v)), **kwargs)
        assert torch.equal(first.plain, second.plain)


def test_attention_rows_blocked_everywhere_are_zero() -> None:
    blocked = torch.zeros(5, 7, dtype=torch.bool)
    calls = [*calls_with({}), *calls_with({"attn_mask": blocked})]
    form = calibrated(function(), calls)
    assert not form(*calls[0][0], attn_mask=blocked).plain.any()
    assert not form.to_integer()(*as_codes(calls[0][0]), attn_mask=blocked).plain.any()


@pytest.mark.parametrize("mask", ["infinite", "large", "bias"])
def test_attention_observers_never_see_what_blocks(mask: str) -> None:
    form = calibrated(function(), calls_with(MASKS[mask]))
    assert all(float(fq.scale) < 1.0 for _, fq in named_fake_quants(form))


def test_attention_float_mask_after_calibration_without_one_is_refused_with_advice() -> None:
    calls = calls_with({})
    integer = calibrated(function(), calls).to_integer()
    with pytest.raises(NotCalibratedError, match="a float mask adds numbers to the scores, and calibration saw none"):
        integer(*as_codes(calls[0][0]), attn_mask=torch.ones(5, 7))


def test_attention_without_int16_on_the_march_is_int8_throughout() -> None:
    set_march("bernoulli2")
    assert {fq.dtype for _, fq in named_fake_quants(form_of(function()))} == {"qint8"}


def test_attention_dropout_drops_probabilities() -> None:
    form = form_of(function())
    args = operands()
    assert_same_floats(form(*args, dropout_p=0.0), F.scaled_dot_product_attention(*args))
    assert not torch.allclose(form(*args, dropout_p=0.9), F.scaled_dot_product_attention(*args))


class Net(nn.Module):
    """Attention by the function, with a float mask as a buffer, and a causal one."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.qkv, self.dequant = QuantStub(), nn.Linear(8, 24), DeQuantStub()
        self.register_buffer("mask", MASKS["bias"]["attn_mask"][:, :5].contiguous())

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.quant(x)).chunk(3, -1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        y = F.scaled_dot_product_attention(y, k, v, is_causal=True)
        result: Tensor = self.dequant(y)
        return result


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_attention_front_ends_give_equal_codes_in_onnx_runtime(front_end: str) -> None:
    net, batches = Net().eval(), [2 * torch.rand(32, 5, 8) - 1 for _ in range(3)]
    prepare, convert = FRONT_ENDS[front_end]
    calib_model = prepare(net, batches)
    names = {name for name, _ in named_fake_quants(calib_model)}
    assert "_generated_scaled_dot_product_attention_0.biased_scores.activation_post_process" in names
    assert "_generated_scaled_dot_product_attention_1.softmax.activation_post_process" in names
    assert sqnr_db(reference=net(batches[0]), test=calib_model(batches[0])) > 20.0
    converted = convert(calib_model)
    assert sqnr_db(reference=calib_model(batches[0]), test=converted(batches[0])) > 40.0
    assert_equals_onnx(converted, batches[0])


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_attention_checkpoint_with_a_float_mask_loads_before_the_first_forward(front_end: str) -> None:
    net, batches = Net().eval(), [torch.randn(4, 5, 8)]
    prepare = FRONT_ENDS[front_end][0]
    calib_model = prepare(net, batches)
    again = prepare(net, []).eval()
    again.load_state_dict(calib_model.state_dict())
    assert torch.equal(again(batches[0]), calib_model(batches[0]))


def test_attention_result_is_quantized() -> None:
    calls = calls_with({})
    y = calibrated(function(), calls)(*calls[0][0])
    assert isinstance(y, QTensor)
    assert y.qdtype == "qint8"
