from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.quant.ops import recurrent_cases as cases
from tests.quant.ops.composite_cases import assert_trains, quantized_input


@pytest.mark.parametrize(("num_layers", "bidirectional", "batch_first", "bias"), cases.FLAGS)
def test_gru_decomposition_equals_torch(num_layers: int, bidirectional: bool, batch_first: bool, bias: bool) -> None:
    cases.check_layer_floats(nn.GRU, num_layers, bidirectional, batch_first, bias)


def test_gru_inner_ops_fed_the_same_codes_are_at_most_one_code_apart() -> None:
    cases.check_layer_codes(nn.GRU)


def test_gru_error_against_torch_is_that_of_int8() -> None:
    cases.check_layer_error(nn.GRU, 30.0)


def test_gru_trains() -> None:
    x = quantized_input(torch.randn(cases.STEPS, cases.BATCH, cases.INPUT))
    assert_trains(nn.GRU(cases.INPUT, cases.HIDDEN, 2, bidirectional=True, dropout=0.2), (x,))


def test_gru_front_ends_agree() -> None:
    cases.check_front_ends(cases.LayerNet(nn.GRU(cases.INPUT, cases.HIDDEN), nn.GRU is nn.LSTM), cases.INPUT)
