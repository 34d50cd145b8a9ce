"""What a converted weighted op keeps between forwards: made anew when what it was made from changes, and bounded."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from profiler.quant.ops.epilogue import Epilogue
from tests.quant.op_forms import assert_codes_equal, codes, forms_of, quantized
from tests.quant.ops.gemm_cases import expected_codes

SCALE = 0.02


def norm() -> nn.BatchNorm2d:
    module = nn.BatchNorm2d(4)
    module.bias.data.fill_(1.0)
    return module


MAKERS: dict[str, Callable[[], Any]] = {
    "linear": lambda: nn.Linear(6, 8),
    "conv": lambda: nn.Conv2d(4, 8, 3, padding=1),
    "conv_transpose": lambda: nn.ConvTranspose2d(4, 8, 3),
    "batch_norm": norm,
}
INPUTS = {"linear": (5, 6), "conv": (2, 4, 5, 5), "conv_transpose": (2, 4, 5, 5), "batch_norm": (2, 4, 5, 5)}


def result(integer: Any, name: str) -> Any:
    return integer(quantized(codes(INPUTS[name]), SCALE)).plain


@pytest.mark.parametrize("name", ["linear", "conv"])
@pytest.mark.parametrize("order", [("qint8", "qint16"), ("qint16", "qint8")])
def test_inputs_of_two_dtypes_and_one_scale_are_both_exact(name: str, order: tuple[str, str]) -> None:
    module = MAKERS[name]()
    _, integer = forms_of(module, 3.0)
    for dtype in (*order, order[0]):
        x_q = codes(INPUTS[name], dtype=dtype)
        assert_codes_equal(integer(quantized(x_q, SCALE, dtype)), expected_codes(module, x_q, SCALE, 3.0))


@pytest.mark.parametrize("order", [("qint8", "qint16"), ("qint16", "qint8")])
def test_added_operands_of_two_dtypes_and_one_scale_are_both_exact(order: tuple[str, str]) -> None:
    module, x_q = nn.Linear(6, 8), codes((5, 6))
    fake, _ = forms_of(module, 3.0)
    fake.epilogue = Epilogue(True)
    integer = fake.to_integer()
    for dtype in order:
        other = codes((5, 8), seed=1, dtype=dtype)
        truth = expected_codes(module, x_q, SCALE, 3.0, other=(other, 0.01))
        assert_codes_equal(integer(quantized(x_q, SCALE), quantized(other, 0.01, dtype)), truth)


def bias_by_data(integer: Any) -> None:
    integer.bias.data = integer.bias + 1


EDITS: dict[str, Callable[[Any], Any]] = {
    "weight.zero_": lambda m: m.weight.zero_(),
    "weight[0] = 7": lambda m: m.weight.__setitem__(0, 7),
    "bias.add_": lambda m: m.bias.add_(1),
    "bias.data =": bias_by_data,
    "weight_scale.mul_": lambda m: m.weight_scale.mul_(2),
    "out_scale.mul_": lambda m: m.out_scale.mul_(2),
    "weight =": lambda m: setattr(m, "weight", -m.weight),
    "bias = None": lambda m: setattr(m, "bias", None),
    "out_scale =": lambda m: setattr(m, "out_scale", m.out_scale * 2),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("name", MAKERS)
def test_edited_parameters_are_used_by_the_next_forward(name: str, edit: str) -> None:
    torch.manual_seed(0)
    _, used = forms_of(MAKERS[name](), 0.05)
    fresh = copy.deepcopy(used)
    before = result(used, name)
    for integer in (used, fresh):
        EDITS[edit](integer)
    assert torch.equal(result(used, name), result(fresh, name))
    assert not torch.equal(result(used, name), before)


def test_weights_replaced_again_and_again_are_never_mixed_up() -> None:
    _, integer = forms_of(nn.Linear(6, 8), 0.05)
    x = quantized(codes((5, 6)), SCALE)
    for seed in range(30):  # a freed tensor's memory is soon given to another
        integer.weight = codes((8, 6), seed)
        fresh = copy.deepcopy(integer)
        assert torch.equal(integer(x).plain, fresh(x).plain)


def test_an_unchanged_model_makes_each_plan_once() -> None:
    _, integer = forms_of(nn.Linear(6, 8), 0.05)
    for scale in (0.01, 0.02, 0.03):
        integer(quantized(codes((5, 6)), scale))
    plans = list(integer._plans.by_scale.values())
    for scale in (0.03, 0.01, 0.02):
        integer(quantized(codes((5, 6), 1), scale))
    assert [id(p) for p in integer._plans.by_scale.values()] == [id(p) for p in plans]


def test_the_number_of_plans_is_bounded() -> None:
    module, x_q = nn.Linear(6, 8), codes((5, 6))
    _, integer = forms_of(module, 0.05)
    scales = [0.01 * (1 + i / 7) for i in range(40)]
    for scale in [*scales, *scales[:3]]:
        assert_codes_equal(integer(quantized(x_q, scale)), expected_codes(module, x_q, scale, 0.05))
    assert len(integer._plans.by_scale) == 16


def test_a_model_made_in_inference_mode_runs() -> None:
    with torch.inference_mode():
        _, integer = forms_of(nn.Linear(6, 8), 0.05)
        y = result(integer, "linear")
    assert torch.equal(result(integer, "linear"), y)


def test_plans_are_neither_copied_nor_pickled() -> None:
    _, integer = forms_of(nn.Linear(6, 8), 0.05)
    y = result(integer, "linear")
    for other in (copy.deepcopy(integer), pickle.loads(pickle.dumps(integer))):
        assert not other._plans.by_scale
        assert other._plans.sources == ()
        assert torch.equal(result(other, "linear"), y)
