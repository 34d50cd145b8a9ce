"""Exported files of models whose Python code decides by the contents of tensors."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.errors import UnsupportedOpError
from profiler.quant import compile_model, load_compiled
from tests.quant.deploy.models import IMAGE, converted
from tests.quant.onnx_check import assert_equals_onnx

BRIGHT = IMAGE.abs()


class Branch(nn.Module):
    """Bright images go through the net twice as large."""

    def __init__(self) -> None:
        super().__init__()
        self.model = converted()

    def forward(self, image: Tensor) -> Tensor:
        if image.sum() > 0:
            image = image * 2
        logits: Tensor = self.model(image)["logits"]
        return logits


class Gain(nn.Module):
    """A number read from the input becomes a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.model = converted()

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.model(image)["logits"] / image.max().item()
        return logits


class Told(nn.Module):
    """A number read from the input is part of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.model = converted()

    def forward(self, image: Tensor) -> Any:
        return self.model(image)["logits"], float(image.sum())


class Warned(nn.Module):
    """What is read changes nothing that the graph computes."""

    def __init__(self) -> None:
        super().__init__()
        self.model = converted()

    def forward(self, image: Tensor) -> Tensor:
        if not bool(image.isfinite().all()):
            raise ValueError("not finite")
        logits: Tensor = self.model(image)["logits"]
        return logits


def test_file_holds_the_path_of_the_example_and_says_where_others_part(tmp_path: Path, caplog: Any) -> None:
    model = Branch().eval()

    compile_model(model, BRIGHT, tmp_path / "net.onnx")

    note = next(r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "path" in r.getMessage())
    assert "other inputs take another from mul_0 on" in note
    assert "test_path.py" in note
    assert "image.sum() > 0" in note
    run = load_compiled(tmp_path / "net.onnx")
    assert run.metadata["path"] in note
    for image in (BRIGHT, BRIGHT[:1], BRIGHT.flip(-1)):
        expected = model(image)
        torch.testing.assert_close(run(image), expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def test_either_path_can_be_exported() -> None:
    model = Branch().eval()

    for image in (BRIGHT, -BRIGHT):
        assert_equals_onnx(model, image, num_codes=6)


@pytest.mark.parametrize("model", [Gain, Told])
def test_number_that_becomes_part_of_the_graph_is_refused(model: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOpError, match=r"Python value.*hold for this input only.*Read at .*test_path.py"):
        compile_model(model().eval(), BRIGHT, tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


def test_check_of_the_input_is_only_told(tmp_path: Path, caplog: Any) -> None:
    compile_model(Warned().eval(), BRIGHT, tmp_path / "net.onnx", dynamic_batch=True)

    assert "may depend on the contents" in caplog.text
    assert load_compiled(tmp_path / "net.onnx")(BRIGHT[:1]).shape == (1, 5)
