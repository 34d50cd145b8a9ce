from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.quant import (
    DeQuantStub,
    QTensor,
    QuantStub,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_out_8bit_fake_quant_qconfig,
    prepare_qat,
    prepare_qat_fx,
)
from profiler.quant.requantize import set_requantization
from profiler.quant.swap import EFFECTS_ATTRIBUTE, keep_requantization
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.ops.composite_cases import (
    as_codes,
    assert_inner_ops_agree,
    assert_same_floats,
    assert_trains,
    calibrated,
    form_of,
    quantized_input,
    sqnr_db,
)
from tests.quant.stages import FRONT_ENDS, calibrate

WIDTH, HEADS, QUERIES, KEYS, BATCH = 16, 4, 5, 7, 3
CAUSAL = torch.ones(QUERIES, KEYS, dtype=torch.bool).triu(1)
PADDED = torch.tensor([[False] * 7, [False] * 6 + [True], [False] * 3 + [True] * 4])


def infinite(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(mask, -math.inf)


PER_HEAD = torch.rand(BATCH * HEADS, QUERIES, KEYS, generator=torch.Generator().manual_seed(0)) > 0.7
PER_HEAD[..., 0] = False
MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "causal": {"attn_mask": CAUSAL},
    "hint": {"attn_mask": infinite(CAUSAL), "is_causal": True},
    "padded": {"key_padding_mask": PADDED},
    "padded_float": {"key_padding_mask": infinite(PADDED)},
    "both": {"attn_mask": CAUSAL, "key_padding_mask": PADDED},
    "both_float": {"attn_mask": infinite(CAUSAL), "key_padding_mask": infinite(PADDED)},
    "bias": {"attn_mask": torch.linspace(-1, 1, 35).reshape(QUERIES, KEYS)},
    "per_head": {"attn_mask": PER_HEAD},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "no_bias": {"bias": False},
    "kdim_vdim": {"kdim": 6, "vdim": 9, "batch_first": True},
}


def operands(module: nn.MultiheadAttention, is_batched: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    def one(length: int, width: int) -> Tensor:
        batched = (BATCH, length, width) if module.batch_first else (length, BATCH, width)
        return torch.randn(batched if is_batched else (length, width))

    return one(QUERIES, WIDTH), one(KEYS, module.kdim), one(KEYS, module.vdim)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mask", MASKS)
def test_multihead_attention_decomposition_equals_torch(variant: str, mask: str) -> None:
    module = nn.MultiheadAttention(WIDTH, HEADS, **VARIANTS[variant]).eval()
    args = operands(module)
    for wanted in ({"need_weights": False}, {}, {"average_attn_weights": False}):
        kwargs = {**MASKS[mask], **wanted}
        y, weights = module(*args, **kwargs)
        actual, shown = form_of(module)(*args, **kwargs)
        assert_same_floats(actual, y)
        assert (shown is None) == (weights is None)
        if weights is not None:
            assert_same_floats(shown, weights)


@pytest.mark.parametrize("mask", [{}, {"attn_mask": CAUSAL}, {"key_padding_mask": PADDED[2]}], ids=str)
def test_multihead_attention_without_a_batch_equals_torch(mask: dict[str, Any]) -> None:
    module = nn.MultiheadAttention(WIDTH, HEADS).eval()
    args = operands(module, is_batched=False)
    for wanted in ({"need_weights": False}, {}, {"average_attn_weights": False}):
        assert_same_floats(form_of(module)(*args, **mask, **wanted), module(*args, **mask, **wanted))


@pytest.mark.parametrize("mask", MASKS)
def test_multihead_attention_inner_ops_fed_the_same_codes_are_at_most_one_code_apart(mask: str) -> None:
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    calls = [(tuple(map(quantized_input, operands(module))), MASKS[mask]) for _ in range(3)]
    whole = assert_inner_ops_agree(calibrated(module, calls), *calls[0])
    assert max(map(abs, whole)) <= 2
    assert whole[0] >= 0.95 * whole.total()


def test_multihead_attention_blocked_keys_get_weight_zero() -> None:
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    kwargs = {"attn_mask": CAUSAL, "average_attn_weights": False}
    calls: list[Any] = [(tuple(map(quantized_input, operands(module))), kwargs)]
    form = calibrated(module, calls)
    for weights in (form(*calls[0][0], **kwargs)[1], form.to_integer()(*as_codes(calls[0][0]), **kwargs)[1]):
        assert isinstance(weights, QTensor)
        assert not weights.plain[..., CAUSAL].any()
        assert bool(weights.plain[..., ~CAUSAL].any())


@pytest.mark.parametrize("ties", ["half_even", "half_up"])
def test_multihead_attention_mean_over_heads_rounds_as_its_softmax(ties: str) -> None:
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    args = tuple(map(quantized_input, operands(module)))
    integer = calibrated(module, [(args, {})]).to_integer()
    set_requantization(ties=ties)
    try:
        keep_requantization(integer)
    finally:
        set_requantization()
    per_head = integer(*as_codes(args), average_attn_weights=False)[1].plain.double()
    shown = integer(*as_codes(args))[1].plain
    mean = per_head.mean(1)
    expected = torch.floor(mean + 0.5) if ties == "half_up" else torch.round(mean)
    assert bool((mean % 1 == 0.5).any())
    assert torch.equal(shown.double(), expected)


def test_multihead_attention_trains() -> None:
    x = quantized_input(torch.randn(BATCH, QUERIES, WIDTH))
    assert_trains(nn.MultiheadAttention(WIDTH, HEADS, dropout=0.1, batch_first=True), (x, x, x))


def test_multihead_attention_high_precision_output_is_float() -> None:
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    x = quantized_input(torch.randn(BATCH, QUERIES, WIDTH))
    form = calibrated(module, [((x, x, x), {})], default_calib_out_8bit_fake_quant_qconfig)
    y, integer = form(x, x, x)[0], form.to_integer()(*as_codes((x, x, x)))[0]
    assert not isinstance(y, QTensor)
    assert not isinstance(integer, QTensor)
    assert sqnr_db(reference=y, test=integer) > 40.0


class Net(nn.Module):
    """Self-attention whose weights leave too, padded keys given."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **kwargs)

    def forward(self, x: Tensor, padded: Tensor) -> tuple[Tensor, Tensor]:
        x = self.quant(x)
        y, weights = self.attn(x, x, x, key_padding_mask=padded)
        return self.dequant(y), self.dequant(weights)


def stages(front_end: str, net: nn.Module, batches: list[Any]) -> tuple[Any, Any]:
    if front_end == "eager":
        net.qconfig = default_calib_8bit_fake_quant_qconfig  # type: ignore[assignment]
        prepared: Any = prepare_qat(net)
    else:
        prepared = prepare_qat_fx(net, {"": default_calib_8bit_fake_quant_qconfig})
    calib_model = calibrate(prepared, [{"x": x, "padded": mask} for x, mask in batches])
    return calib_model, FRONT_ENDS[front_end][1](calib_model)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize("mask", [PADDED, infinite(PADDED)], ids=["bool", "float"])
def test_multihead_attention_front_ends_give_equal_codes_in_onnx_runtime(front_end: str, mask: Tensor) -> None:
    net, batches = Net().eval(), [(2 * torch.rand(BATCH, KEYS, WIDTH) - 1, mask) for _ in range(3)]
    calib_model, converted = stages(front_end, net, batches)
    for reference, fake, integer in zip(
        net(*batches[0]), calib_model(*batches[0]), converted(*batches[0]), strict=True
    ):
        assert sqnr_db(reference=reference, test=fake) > 20.0
        assert sqnr_db(reference=fake, test=integer) > 30.0
    assert_equals_onnx(converted, *batches[0])


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_multihead_attention_refused_option_stays_in_float_and_is_named(option: str) -> None:
    net, batches = Net(**{option: True}).eval(), [(torch.randn(BATCH, KEYS, WIDTH), PADDED)]
    calib_model, converted = stages("fx", net, batches)
    reasons = {e.op: e.reason for e in getattr(calib_model, EFFECTS_ATTRIBUTE)}
    assert reasons["attn"] == f"{option}=True has no quantized form: runs in float"
    assert sqnr_db(reference=net(*batches[0])[0], test=converted(*batches[0])[0]) > 20.0


ENCODERS: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {
    "layer": (nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True), ()),
    "norm_first_gelu": (nn.TransformerEncoderLayer(WIDTH, HEADS, 32, activation="gelu", norm_first=True), ()),
    "encoder": (nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True), 2), ()),
    "masked": (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True), 1),
        (torch.ones(KEYS, KEYS, dtype=torch.bool).triu(1),),
    ),
    "decoder": (nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, HEADS, 32, batch_first=True), 1), ()),
}


class Encoding(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.body, self.extra = ENCODERS[name]
        self.quant, self.dequant, self.is_decoder = QuantStub(), DeQuantStub(), name == "decoder"

    def forward(self, x: Tensor) -> Tensor:
        x = self.quant(x)
        y: Tensor = self.dequant(self.body(x, x) if self.is_decoder else self.body(x, *self.extra))
        return y


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize("name", ENCODERS)
def test_transformer_layers_run_their_parts_on_integers(front_end: str, name: str) -> None:
    net, batches = Encoding(name).eval(), [2 * torch.rand(BATCH, KEYS, WIDTH) - 1 for _ in range(3)]
    prepare, convert = FRONT_ENDS[front_end]
    calib_model = prepare(net, batches)
    with torch.no_grad():
        reference, fake, integer = net(batches[0]), calib_model(batches[0]), convert(calib_model)(batches[0])
    assert not [e for e in getattr(calib_model, EFFECTS_ATTRIBUTE) if e.reason]
    assert sqnr_db(reference=reference, test=fake) > 20.0
    assert sqnr_db(reference=fake, test=integer) > 30.0
