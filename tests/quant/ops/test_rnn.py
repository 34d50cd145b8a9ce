from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.quant.ops import recurrent_cases as cases
from tests.quant.ops.composite_cases import assert_trains, quantized_input


@pytest.mark.parametrize(("num_layers", "bidirectional", "batch_first", "bias"), cases.FLAGS)
def test_rnn_decomposition_equals_torch(num_layers: int, bidirectional: bool, batch_first: bool, bias: bool) -> None:
    cases.check_layer_floats(nn.RNN, num_layers, bidirectional, batch_first, bias)


def test_rnn_inner_ops_fed_the_same_codes_are_at_most_one_code_apart() -> None:
    cases.check_layer_codes(nn.RNN)


def test_rnn_error_against_torch_is_that_of_int8() -> None:
    cases.check_layer_error(nn.RNN, 30.0)


def test_rnn_trains() -> None:
    x = quantized_input(torch.randn(cases.STEPS, cases.BATCH, cases.INPUT))
    assert_trains(nn.RNN(cases.INPUT, cases.HIDDEN, 2, bidirectional=True, dropout=0.2), (x,))


def test_rnn_front_ends_agree() -> None:
    cases.check_front_ends(cases.LayerNet(nn.RNN(cases.INPUT, cases.HIDDEN), nn.RNN is nn.LSTM), cases.INPUT)


def test_rnn_relu_equals_torch_and_agrees_with_its_integer_form() -> None:
    cases.check_layer_floats(nn.RNN, 2, True, False, True, nonlinearity="relu")
    cases.check_layer_codes(nn.RNN, nonlinearity="relu")
