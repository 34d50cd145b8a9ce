from __future__ import annotations

from torch import nn

from tests.quant.ops import recurrent_cases as cases


def test_gru_cell_equals_torch_trains_and_agrees_with_its_integer_form() -> None:
    cases.check_cell(nn.GRUCell)
