"""Cases that the tests of all recurrent layers and cells run."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from profiler.quant import DeQuantStub, QuantStub
from profiler.quant.ops.functional import tensors_in
from profiler.quant.qtensor import to_float
from profiler.quant.states import named_fake_quants
from profiler.quant.swap import fake_quant_form
from tests.quant.ops.composite_cases import (
    assert_inner_ops_agree,
    assert_same_floats,
    assert_trains,
    calibrated,
    form_of,
    quantized_input,
    sqnr_db,
    switch,
)
from tests.quant.stages import FRONT_ENDS

FLAGS = list(itertools.product((1, 2), (False, True), (False, True), (False, True)))
INPUT, HIDDEN, STEPS, BATCH = 5, 6, 7, 3


def states(shape: tuple[int, ...], is_lstm: bool) -> Any:
    """Random h, or (h, c)."""
    h = 0.5 * torch.randn(shape)
    return (h, 0.5 * torch.randn(shape)) if is_lstm else h


def check_layer_floats(
    cls: Any, num_layers: int, bidirectional: bool, batch_first: bool, bias: bool, **kw: Any
) -> None:
    """The decomposition, and its float run in calibration, equal torch's layer; batched or not, states given or not."""
    flags = {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional}
    layer = cls(INPUT, HIDDEN, num_layers, **flags, **kw)
    num_states = num_layers * (2 if bidirectional else 1)
    for is_batched, has_states in itertools.product((True, False), (True, False)):
        x = torch.randn(STEPS, BATCH, INPUT) if is_batched else torch.randn(STEPS, INPUT)
        batch = STEPS if batch_first else BATCH
        shape = (num_states, batch, HIDDEN) if is_batched else (num_states, HIDDEN)
        args = (x, states(shape, cls is nn.LSTM)) if has_states else (x,)
        assert_same_floats(form_of(layer)(*args), layer(*args))
        observing = fake_quant_form(layer, form_of.__defaults__[0])  # type: ignore[index]
        switch(observing, observer=True, fake_quant=False)
        assert_same_floats(observing(*args), layer(*args))
        assert all(fq.is_calibrated for _, fq in named_fake_quants(observing))


def check_layer_codes(cls: Any, **kw: Any) -> None:
    """Inner ops agree between both forms; the whole drifts by few codes."""
    layer = cls(INPUT, HIDDEN, 2, bidirectional=True, **kw).eval()
    calls = [((quantized_input(torch.randn(STEPS, BATCH, INPUT)),), {}) for _ in range(3)]
    form = calibrated(layer, calls)
    whole = assert_inner_ops_agree(form, calls[0][0])
    assert whole[0] >= 0.9 * whole.total()
    given = states((4, BATCH, HIDDEN), cls is nn.LSTM)
    hx = tuple(map(quantized_input, given)) if isinstance(given, tuple) else quantized_input(given)
    assert_inner_ops_agree(form, (calls[0][0][0], hx))


def check_layer_error(cls: Any, least_db: float, **kw: Any) -> None:
    """Results of the fake-quant form are near torch's float layer."""
    layer = cls(8, 32, **kw).eval()
    calls = [((quantized_input(torch.randn(20, 4, 8)),), {}) for _ in range(4)]
    y = to_float(calibrated(layer, calls)(*calls[0][0])[0])
    reference = layer(calls[0][0][0].plain)[0]
    assert sqnr_db(reference=reference, test=y) > least_db


class LayerNet(nn.Module):
    """A layer between stubs; all its results leave."""

    def __init__(self, layer: nn.Module, is_lstm: bool) -> None:
        super().__init__()
        self.quant, self.layer, self.dequant, self.is_lstm = QuantStub(), layer, DeQuantStub(), is_lstm

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.is_lstm:
            y, (h, c) = self.layer(self.quant(x))
            return self.dequant(y), self.dequant(c)
        y, h = self.layer(self.quant(x))
        return self.dequant(y), self.dequant(h)


class CellNet(nn.Module):
    """A cell that the user's own code steps with."""

    def __init__(self, cell: nn.Module, is_lstm: bool) -> None:
        super().__init__()
        self.quant, self.cell, self.dequant, self.is_lstm = QuantStub(), cell, DeQuantStub(), is_lstm

    def forward(self, x: Tensor) -> Tensor:
        x = self.quant(x)
        if self.is_lstm:
            h, c = self.cell(x[0])
            h, c = self.cell(x[1], (h, c))
        else:
            h = self.cell(x[1], self.cell(x[0]))
        result: Tensor = self.dequant(h)
        return result


def check_front_ends(net: nn.Module, size: int) -> None:
    """Both front ends agree, the converted model is near the calibrated one, and that near the float one."""
    batches = [2 * torch.rand(STEPS, 64, size) - 1 for _ in range(3)]
    reference = tensors_in(net.eval()(batches[0]))
    results = []
    for prepare, convert in FRONT_ENDS.values():
        calib_model = prepare(net, batches)
        fake, integer = tensors_in(calib_model(batches[0])), tensors_in(convert(calib_model)(batches[0]))
        net.__dict__.pop("qconfig", None)
        for r, f, i in zip(reference, fake, integer, strict=True):
            assert sqnr_db(reference=r, test=f) > 15.0
            assert sqnr_db(reference=f, test=i) > 40.0
        results.append(fake)
    assert_same_floats(results[0], results[1], 0.0)


def check_cell(cls: Any, **kw: Any) -> None:
    """A cell against torch's, its codes, its training, both front ends."""
    for bias, is_batched, has_states in itertools.product((True, False), repeat=3):
        cell = cls(INPUT, HIDDEN, bias, **kw)
        x = torch.randn(BATCH, INPUT) if is_batched else torch.randn(INPUT)
        args = (x, states((*x.shape[:-1], HIDDEN), cls is nn.LSTMCell)) if has_states else (x,)
        assert_same_floats(form_of(cell)(*args), cell(*args))
    cell = cls(INPUT, HIDDEN, **kw).eval()
    calls = [((quantized_input(torch.randn(50, INPUT)),), {}) for _ in range(2)]
    assert_inner_ops_agree(calibrated(cell, calls), calls[0][0])
    assert_trains(cell, calls[0][0])
    check_front_ends(CellNet(cls(INPUT, HIDDEN, **kw), cls is nn.LSTMCell), INPUT)
