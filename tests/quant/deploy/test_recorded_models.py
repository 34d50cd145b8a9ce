"""Models that were prepared from a record of a run, exported: integers equal ONNX Runtime's at any batch size."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.quant import (
    FakeQuantState,
    March,
    QConfig,
    compile_model,
    convert,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_16bit_fake_quant_qconfig,
    load_compiled,
    set_fake_quantize,
    set_march,
)
from profiler.quant.fx.planning import from_dicts
from profiler.quant.record.prepare import prepare_recorded
from tests.quant.deploy.functions import ints, rand
from tests.quant.onnx_check import assert_equals_onnx, assert_free_batch

X, ROWS = rand(2, 3, 8, 8), rand(2, 5, 8)
TOKENS = ints(2, 7, low=0, high=20, dtype=torch.int64)


class Deep(nn.Module):
    """Loops over blocks; a block is shared; the number of rounds is decided by the size of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for i in range(3 if x.shape[-1] > 4 else 1):
            x = x + F.relu(self.block(x)) * (0.5 + i)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Branches(Deep):
    """Decides by what it sees."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        if x.amax() > 10:
            x = self.block(x) * 2
        logits: Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class InPlace(Deep):
    """Writes into its tensors."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.stem(x)
        x.relu_()
        x += self.block(x)
        x.mul_(0.5)
        y = self.block(x)
        y[:, 1:3] = x[:, :2]
        return {"map": y, "logits": self.head(y.flatten(2).mean(-1)), "pair": (x.amax((2, 3)), x.shape[1])}


class Items(nn.Module):
    """A list filled row by row into one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, rows: Tensor) -> Tensor:
        state = torch.zeros(rows.shape[0], rows.shape[1], 8)
        for i in range(rows.shape[1]):
            state[:, i] = torch.tanh(self.fc(rows[:, i]))
        out: Tensor = self.out(state)
        return out


class Cells(nn.Module):
    """A loop over time with a cell that is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTMCell(8, 6), nn.Linear(6, 3)

    def forward(self, rows: Tensor) -> Tensor:
        h = c = rows.new_zeros(rows.shape[0], 6)
        found = []
        for row in rows.unbind(1):
            h, c = self.cell(row, (h, c))
            found.append(h)
        out: Tensor = self.out(torch.stack(found, 1))
        return out


class Recurrent(nn.Module):
    """A whole recurrent layer, its last step read."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.out = nn.LSTM(8, 6, batch_first=True), nn.GRU(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, rows: Tensor) -> Tensor:
        hidden, _ = self.lstm(rows)
        out: Tensor = self.out(self.gru(hidden)[0][:, -1])
        return out


class Attention(nn.Module):
    """Attention as module and as function, with norms."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, rows: Tensor) -> Tensor:
        rows = self.norm(rows + self.attention(rows, rows, rows, need_weights=False)[0])
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(rows).chunk(3, -1))
        rows = rows + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = self.out(F.gelu(rows))
        return out


class Encoder(nn.Module):
    """Takes a dict by keyword; the mask decides which rows count."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.norm = nn.Embedding(20, 8), nn.Embedding(16, 8), nn.LayerNorm(8)
        self.attention, self.out = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, *, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.norm(self.words(input_ids) + self.places(places))
        padding = None if attention_mask is None else attention_mask == 0
        x = x + self.attention(x, x, x, key_padding_mask=padding)[0]
        if attention_mask is not None:
            x = x * attention_mask.unsqueeze(-1)
        return {"rows": x, "pooled": self.out(x.mean(1))}


MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "deep": (Deep, (X,)),
    "branches": (Branches, (X,)),
    "in place": (InPlace, (X,)),
    "items": (Items, (ROWS,)),
    "cells": (Cells, (ROWS,)),
    "recurrent": (Recurrent, (ROWS,)),
    "attention": (Attention, (ROWS,)),
    "encoder": (Encoder, {"input_ids": TOKENS, "attention_mask": (TOKENS > 3).long()}),
}


def recorded(make: Callable[[], nn.Module], example: Any, qconfig: QConfig) -> nn.Module:
    """Prepared from a record of one run, calibrated with it, converted."""
    set_march(March.BAYES)
    torch.manual_seed(0)
    run = ((), example) if isinstance(example, dict) else (example, {})
    prepared = prepare_recorded(make().eval(), [run], from_dicts({"": qconfig}))
    prepared.eval()
    set_fake_quantize(prepared, FakeQuantState.CALIBRATION)
    with torch.no_grad():
        prepared(*run[0], **run[1])
    prepared.eval()
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    return convert(prepared)


@pytest.mark.parametrize("qconfig", [default_calib_8bit_fake_quant_qconfig, default_calib_16bit_fake_quant_qconfig])
@pytest.mark.parametrize("name", MODELS)
def test_recorded_model_equals_onnx_runtime_op_by_op(name: str, qconfig: QConfig) -> None:
    make, example = MODELS[name]
    model = recorded(make, example, qconfig)

    assert_equals_onnx(model, example=example, num_codes=3)
    if qconfig is default_calib_8bit_fake_quant_qconfig:
        assert_free_batch(model, example=example)


@pytest.mark.parametrize("name", MODELS)
def test_compiled_file_gives_what_the_recorded_model_gives(name: str, tmp_path: Path, caplog: Any) -> None:
    make, example = MODELS[name]
    model = recorded(make, example, default_calib_8bit_fake_quant_qconfig)
    caplog.set_level(logging.INFO)

    compile_model(model, example, tmp_path / "net.onnx", dynamic_batch=True)

    run = load_compiled(tmp_path / "net.onnx")
    assert ("decided at" in caplog.text) == (name == "branches")
    for size in (1, 2):
        part = {k: v[:size] for k, v in example.items()} if isinstance(example, dict) else example[0][:size]
        expected = model(**part) if isinstance(part, dict) else model(part)
        actual = run(**part) if isinstance(part, dict) else run(part)
        assert_same(actual, expected)


def assert_same(actual: Any, expected: Any) -> None:
    """Equal structures; floats to 1e-6 of the largest."""
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        actual, expected = list(actual.values()), list(expected.values())
    if isinstance(expected, (tuple, list)):
        for a, e in zip(actual, expected, strict=True):
            assert_same(a, e)
    elif isinstance(expected, Tensor):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
    else:
        assert actual == expected
