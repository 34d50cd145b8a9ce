from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from profiler.errors import UnsupportedOpError
from profiler.quant import DeQuantStub, QuantStub, default_calib_8bit_fake_quant_qconfig, prepare_qat_fx, set_march
from profiler.quant.states import named_fake_quants
from profiler.quant.swap import EFFECTS_ATTRIBUTE
from tests.quant.ops import recurrent_cases as cases
from tests.quant.ops.composite_cases import assert_trains, calibrated, form_of, quantized_input


@pytest.mark.parametrize(("num_layers", "bidirectional", "batch_first", "bias"), cases.FLAGS)
def test_lstm_decomposition_equals_torch(num_layers: int, bidirectional: bool, batch_first: bool, bias: bool) -> None:
    cases.check_layer_floats(nn.LSTM, num_layers, bidirectional, batch_first, bias)


def test_lstm_inner_ops_fed_the_same_codes_are_at_most_one_code_apart() -> None:
    cases.check_layer_codes(nn.LSTM)


def test_lstm_error_against_torch_is_that_of_int8() -> None:
    cases.check_layer_error(nn.LSTM, 30.0)


def test_lstm_trains() -> None:
    x = quantized_input(torch.randn(cases.STEPS, cases.BATCH, cases.INPUT))
    assert_trains(nn.LSTM(cases.INPUT, cases.HIDDEN, 2, bidirectional=True, dropout=0.2), (x,))


def test_lstm_front_ends_agree() -> None:
    cases.check_front_ends(cases.LayerNet(nn.LSTM(cases.INPUT, cases.HIDDEN), nn.LSTM is nn.LSTM), cases.INPUT)


def test_lstm_gates_and_cell_are_int16_and_results_int8() -> None:
    calls: list[Any] = [((quantized_input(torch.randn(cases.STEPS, cases.BATCH, cases.INPUT)),), {})]
    form = calibrated(nn.LSTM(cases.INPUT, cases.HIDDEN), calls)
    y, (h, c) = form(*calls[0][0])
    assert (y.qdtype, h.qdtype, c.qdtype) == ("qint8", "qint8", "qint16")
    assert form.l0.gates.activation_post_process.dtype == "qint16"


def test_lstm_without_int16_on_the_march_is_int8_throughout() -> None:
    set_march("bernoulli2")
    form = form_of(nn.LSTM(cases.INPUT, cases.HIDDEN))
    assert {fq.dtype for _, fq in named_fake_quants(form)} == {"qint8"}


def test_lstm_observers_see_the_whole_sequence_at_once() -> None:
    layer = nn.LSTM(1, 1, bias=False)
    for p in layer.parameters():
        p.data.fill_(2.0)
    x = quantized_input(torch.ones(10, 1, 1))
    c = layer(x.plain)[1][1]
    form = calibrated(layer, [((x,), {})])
    assert float(form.l0.cell.activation_post_process.scale) == pytest.approx(float(c) / 32767.5, rel=1e-5)


def test_lstm_packed_sequence_is_refused_with_advice() -> None:
    packed = pack_padded_sequence(torch.randn(5, 2, cases.INPUT), torch.tensor([5, 3]))
    with pytest.raises(UnsupportedOpError, match="LSTM: a PackedSequence has no quantized form; pad the sequences"):
        form_of(nn.LSTM(cases.INPUT, cases.HIDDEN))(packed)


def test_lstm_with_projection_stays_in_float_and_is_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.layer, self.dequant = QuantStub(), nn.LSTM(4, 6, proj_size=2), DeQuantStub()

        def forward(self, x: torch.Tensor) -> Any:
            return self.dequant(self.layer(self.quant(x))[0])

    prepared = prepare_qat_fx(Net().eval(), {"": default_calib_8bit_fake_quant_qconfig})
    reasons = {e.op: e.reason for e in getattr(prepared, EFFECTS_ATTRIBUTE)}
    assert reasons["layer"] == "proj_size=2 has no quantized form: runs in float"
    assert isinstance(prepared.get_submodule("layer"), nn.LSTM)
