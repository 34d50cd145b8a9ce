"""Additive masks beside data: what they switch off stays off, and the data keeps its resolution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from profiler.errors import ModelError
from profiler.quant import (
    MinMaxObserver,
    MSEObserver,
    QTensor,
    QuantStub,
    convert,
    default_calib_8bit_fake_quant_qconfig,
    quantize,
)
from profiler.quant.masks import MASK_SCALE, is_additive_mask, is_mask_scale, masked_elements
from profiler.quant.observers import HistogramObserver, KLObserver, PercentileObserver
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.op_forms import assert_codes_equal, codes, forms_of, on_grid, quantized
from tests.quant.ops.arithmetic_cases import S, distance, function_forms, rounded

LEAST = torch.finfo(torch.float32).min
OBSERVERS = [MinMaxObserver, MSEObserver, HistogramObserver, KLObserver, PercentileObserver]


class Attention(nn.Module):
    """One head that adds a mask of its keyword input, or its causal buffer, to the scores."""

    def __init__(self, off: float, is_causal: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.off = off
        mask = torch.triu(torch.full((10, 10), off), 1) if is_causal else None
        self.register_buffer("causal", mask)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        mask = torch.where(keep, 0.0, self.off)[:, None, :] if self.causal is None else self.causal
        scores = self.q(x) @ self.k(x).transpose(1, 2) * 0.5 + mask
        out: torch.Tensor = self.o(scores.softmax(-1) @ self.v(x))
        return out


def batch(seed: int, lengths: tuple[int, ...] = (6, 10, 3, 10)) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(4, 10, 16, generator=torch.Generator().manual_seed(seed))
    return x, torch.arange(10)[None] < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("frontend", ["fx", "record"])
@pytest.mark.parametrize("off", [LEAST, -math.inf, -1e9, -1e4])
@pytest.mark.parametrize("is_causal", [True, False])
def test_attention_with_an_added_mask_is_near_float_in_every_front_end(
    frontend: str, off: float, is_causal: bool
) -> None:
    torch.manual_seed(0)
    model = Attention(off, is_causal).eval()
    lengths = [(10, 10, 10, 10), (6, 10, 3, 10), (10, 10, 10, 10)]

    stages = quantize(model, [batch(i, n) for i, n in enumerate(lengths)], frontend=frontend)

    given = batch(9)
    with torch.no_grad():
        expected, calib, integer = (m(*given) for m in (model, stages.calib, stages.quantized))
    assert distance(calib, expected) < 0.1, "0.5 where the mask sets the scale"
    assert distance(integer, calib) < 0.01
    assert_equals_onnx(stages.quantized, *given)


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
def test_observer_of_a_mask_gives_its_scale_whatever_the_batches_without_masked_elements(
    observer: type, dtype: str
) -> None:
    for order in ([0, 1, 0], [1, 0, 1]):
        made = observer(dtype=dtype)
        for number in order:
            made(torch.tensor([0.0, -math.inf if number else 0.0, 0.0]))
        assert is_mask_scale(made.calculate_qparams()[0])


def test_observer_of_data_that_reaches_far_is_not_taken_for_a_mask() -> None:
    for values in ([0.0, -1e5, 3.0], [0.0, -1e5, -1.0], [0.0, -100.0]):
        observer = MinMaxObserver()
        observer(torch.tensor(values))
        assert not is_mask_scale(observer.calculate_qparams()[0])
    observer(torch.tensor([0.0, -1e9]))
    assert not is_mask_scale(observer.calculate_qparams()[0]), "it had seen data before"


def test_observer_still_refuses_inf_in_data() -> None:
    with pytest.raises(ModelError, match="NaN or Inf"):
        MinMaxObserver()(torch.tensor([0.0, -math.inf, 1.0]))


def test_is_additive_mask_wants_zeros_and_large_negative_numbers_only() -> None:
    assert is_additive_mask(torch.tensor([0.0, -1e4]))
    assert is_additive_mask(torch.tensor([-math.inf]))
    assert not is_additive_mask(torch.zeros(3))
    assert not is_additive_mask(torch.tensor([0.0, math.nan, -math.inf]))
    assert not is_additive_mask(torch.tensor([]))


@pytest.mark.parametrize("dtype", ["qint8", "qint16"])
def test_add_of_a_mask_gives_the_data_and_the_least_int16_code(dtype: str) -> None:
    x_q = codes((4, 6), 0, dtype)
    mask_q = torch.tensor([0, -1, -128, 0, 0, -2], dtype=torch.int8)
    fake, integer = function_forms("add", 0.02, dtype)

    result = integer(quantized(x_q, 0.013, dtype), quantized(mask_q, MASK_SCALE))

    expected = rounded(x_q.numpy().astype(S) * (S(0.013) / S(0.02)), dtype)
    expected[:, mask_q.numpy() < 0] = -32768
    assert_codes_equal(result, expected, "qint16")
    y_fq = fake(on_grid(x_q, 0.013, dtype), on_grid(mask_q, MASK_SCALE))
    assert (y_fq.int_repr().to(torch.int64) - result.plain.to(torch.int64)).abs().max() <= 1
    assert torch.equal(integer(quantized(mask_q, MASK_SCALE), quantized(x_q, 0.013, dtype)).plain, result.plain)


def test_add_of_a_mask_broadcasts_the_data() -> None:
    mask_q = torch.tensor([[0, -1], [-1, 0]], dtype=torch.int8)
    _, integer = function_forms("add", 0.5)
    result = integer(quantized(torch.tensor([4], dtype=torch.int8), 0.5), quantized(mask_q, MASK_SCALE))
    assert_codes_equal(result, np.array([[4, -32768], [-32768, 4]]), "qint16")


def test_add_of_two_masks_is_a_mask() -> None:
    left = quantized(torch.tensor([0, -1, 0, -128], dtype=torch.int8), MASK_SCALE)
    right = quantized(torch.tensor([0, 0, -3, -128], dtype=torch.int8), MASK_SCALE)
    _, integer = function_forms("add", MASK_SCALE)

    found = masked_elements(integer(left, right))

    assert found is not None
    assert found.tolist() == [False, True, True, True]


def test_int16_sum_with_a_mask_keeps_room_below_the_data() -> None:
    fake, _ = function_forms("add", 0.02, "qint16")
    fake.train()
    fake.activation_post_process.enable_observer()
    fake.activation_post_process.activation_post_process.forget()
    x = QTensor.wrap(torch.tensor([1.0, -1.0, 1.0]), torch.tensor(0.01), "qint16")
    mask = QTensor.wrap(torch.tensor([0.0, 0.0, LEAST]), torch.tensor(MASK_SCALE), "qint16")

    result = fake(x, mask)

    torch.testing.assert_close(result.dequantize(), torch.tensor([1.0, -1.0, -8.0]), rtol=0, atol=1e-3)


class BiasedAttention(Attention):
    """Adds a learned bias and the mask first, and their sum to the scores, as T5 does."""

    def __init__(self, off: float, spread: float) -> None:
        super().__init__(off, is_causal=False)
        self.bias = nn.Embedding(19, 1)
        with torch.no_grad():
            self.bias.weight.mul_(spread)

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        places = torch.arange(10)
        bias = self.bias(places[None] - places[:, None] + 9).squeeze(-1)[None]
        bias = bias + (1.0 - keep[:, None, :].float()) * self.off
        scores = self.q(x) @ self.k(x).transpose(1, 2) + bias
        out: torch.Tensor = self.o(scores.softmax(-1) @ self.v(x))
        return out


@pytest.mark.parametrize("frontend", ["fx", "record"])
@pytest.mark.parametrize("off", [LEAST, -1e9, -1e4])
@pytest.mark.parametrize("spread", [1.0, 0.03])
@pytest.mark.parametrize("qconfig", [None, default_calib_8bit_fake_quant_qconfig])
def test_sum_with_a_mask_stays_off_where_it_is_added_to_scores(
    frontend: str, off: float, spread: float, qconfig: object
) -> None:
    torch.manual_seed(0)
    model = BiasedAttention(off, spread).eval()

    stages = quantize(model, [batch(i) for i in range(3)], frontend=frontend, qconfig=qconfig)

    given = batch(9, (2, 10, 3, 5))
    with torch.no_grad():
        expected, calib, integer = (m(*given) for m in (model, stages.calib, stages.quantized))
    assert distance(calib, expected) < 0.06, "0.8 where the sum of bias and mask sets the scale of the scores"
    assert distance(integer, calib) < 0.01
    assert_equals_onnx(stages.quantized, *given)


def test_sums_keep_what_is_off_in_every_state() -> None:
    x, mask = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 0.0, LEAST])
    off = torch.tensor([False, False, True])
    fake, integer = function_forms("add", 0.02)
    outer_fake, outer_integer = function_forms("add", 0.03)

    first = fake(QTensor.wrap(x, torch.tensor(0.02), "qint8"), QTensor.wrap(mask, torch.tensor(MASK_SCALE), "qint8"))
    second = outer_fake(first[None].expand(2, 3).clone(), QTensor.wrap(x * 1.5, torch.tensor(0.03), "qint8"))
    codes_of_first = integer(first_codes(x, 0.02), quantized(torch.tensor([0, 0, -128], dtype=torch.int8), MASK_SCALE))
    codes_of_second = outer_integer(codes_of_first[None].expand(2, 3).clone(), first_codes(x * 1.5, 0.03))

    for values in (second, codes_of_second):
        found = masked_elements(values)
        assert found is not None
        assert torch.equal(found, off.expand(2, 3))
    assert torch.equal(second.int_repr(), codes_of_second.plain)
    for quant in (fake, outer_fake):
        quant.activation_post_process.disable_fake_quant()
        quant.activation_post_process.disable_observer()
    first = fake(QTensor.wrap(x, torch.tensor(0.02), "qint8"), QTensor.wrap(mask, torch.tensor(MASK_SCALE), "qint8"))
    second = outer_fake(first, QTensor.wrap(x * 1.5, torch.tensor(0.03), "qint8"))
    found = masked_elements(second)
    assert found is not None
    assert torch.equal(found, off)
    torch.testing.assert_close(second.dequantize()[:2], x[:2] * 2.5)


def first_codes(x: torch.Tensor, scale: float) -> QTensor:
    return quantized(torch.round(x / scale).to(torch.int8), scale)


class Windows(Attention):
    """Adds a mask of -100, as attention in windows does, or a float input that holds bias and mask together."""

    def __init__(self, reads_softmax: bool = True) -> None:
        super().__init__(-100.0, is_causal=True)
        self.reads_softmax = reads_softmax

    def forward(self, x: torch.Tensor, biases: torch.Tensor) -> torch.Tensor:
        scores = (self.q(x) @ self.k(x).transpose(1, 2)).view(2, 2, 10, 10)
        scores = (scores + self.causal[None, None]).view(4, 10, 10) + biases.unsqueeze(0)
        shares = scores.softmax(-1) if self.reads_softmax else scores
        out: torch.Tensor = self.o(shares @ self.v(x))
        return out


def biases(off: float, seed: int = 0) -> torch.Tensor:
    values = torch.randn(10, 10, generator=torch.Generator().manual_seed(seed))
    return torch.where((torch.arange(10) % 4 == 1) & ~torch.eye(10, dtype=torch.bool), off, values)


@pytest.mark.parametrize("frontend", ["fx", "record"])
@pytest.mark.parametrize("off", [-100.0, -1e9, LEAST, 0.5])
@pytest.mark.parametrize("qconfig", [None, default_calib_8bit_fake_quant_qconfig])
def test_far_entries_before_a_softmax_leave_the_scores_their_resolution(
    frontend: str, off: float, qconfig: object
) -> None:
    torch.manual_seed(0)
    model = Windows().eval()
    given = [(batch(i)[0], biases(off, i)) for i in range(4)]

    stages = quantize(model, given[:3], frontend=frontend, qconfig=qconfig)

    with torch.no_grad():
        expected, calib, integer = (m(*given[3]) for m in (model, stages.calib, stages.quantized))
    assert distance(calib, expected) < 0.05, "0.2 where -100 sets the scale of the scores in int8"
    assert distance(integer, calib) < 0.01
    assert_equals_onnx(stages.quantized, *given[3])


def test_far_entries_that_no_softmax_reads_are_data() -> None:
    torch.manual_seed(0)
    model = Windows(reads_softmax=False).eval()
    given = [(batch(i)[0], biases(-100.0, i)) for i in range(3)]
    stages = quantize(model, given)
    with torch.no_grad():
        assert distance(stages.quantized(*given[0]), model(*given[0])) < 0.05
    assert not [m for m in stages.calib.modules() if getattr(m, "feeds_softmax", False)]


def test_checkpoint_of_a_calibrated_model_knows_the_masks() -> None:
    torch.manual_seed(0)
    model = Windows().eval()
    given = [(batch(i)[0], biases(-100.0, i)) for i in range(3)]
    plain = [(x, torch.zeros_like(b)) for x, b in given]
    stages, other = quantize(model, given), quantize(model, plain)
    with torch.no_grad():
        expected = stages.calib(*given[0])
        assert not torch.equal(other.calib(*given[0]), expected)
        other.calib.load_state_dict(stages.calib.state_dict())
        assert torch.equal(other.calib(*given[0]), expected)
        assert torch.equal(convert(other.calib)(*given[0]), stages.quantized(*given[0]))


def test_stub_before_a_softmax_takes_data_without_a_gap_as_it_is() -> None:
    stub = QuantStub()
    stub.feeds_softmax = True
    for values in ([-80.0, -40.0, 0.0], [0.0, -49.0, 2.0], [-30.0, -60.0]):
        fake = forms_of(stub, 0.5)[0]
        fake.train()
        fake(torch.tensor(values))
        assert not fake.has_mask
    fake(torch.tensor([-50.0, -25.0, 3.0]))
    assert fake.has_mask
