"""The benchmark of real networks on a folder of small loaders: coverage, metrics, peers, and what a failure prints."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import _runtime, real_models
from benchmarks._coverage import count_ops
from benchmarks._loaders import importable, loader_names
from benchmarks._runtime import RuntimeModel, compare_codes
from profiler.quant import DeQuantStub, March, QuantStub, convert
from profiler.quant.deploy.session import run_session
from profiler.quant.march import march_set_to
from profiler.quant.swap import QuantEffect
from tests.quant.stages import eager

SHARED = """
import torch
from torch import nn
from sample_models import digits

METRIC = "accuracy on held-out digits"

def trained(model, forward):
    torch.manual_seed(0)
    images, labels = digits.small_images(is_train=True)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for step in range(60):
        rows = torch.randint(len(images), (128,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(forward(model, images[rows]), labels[rows]).backward()
        optimizer.step()
    return model.eval()

def batches():
    images, _ = digits.small_images(is_train=True)
    return [images[i : i + 32] for i in range(0, 128, 32)]

def accuracy(forward, model):
    images, labels = digits.small_images(is_train=False)
    return (forward(model, images).argmax(1) == labels).float().mean().item()
"""

CONVOLUTION = """
import torch
from torch import nn
import _shared
from _shared import METRIC

def forward(model, images):
    return model(images[:, None])

def load():
    layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)]
    torch.manual_seed(0)
    return _shared.trained(nn.Sequential(*layers), forward), [(b[:, None],) for b in _shared.batches()]

def metric(model):
    return _shared.accuracy(forward, model)
"""

WORDS = '''
import torch
from torch import nn
import _shared
from _shared import METRIC

class Reader(nn.Module):
    """Keyword inputs, a dict output, and a branch on a shape, which no symbolic trace follows."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, pixels, weight=None):
        x = self.first(pixels)
        if len(x) > 0:
            x = torch.relu(x)
        return {"logits": self.second(x), "hidden": x, "name": "reader"}

def forward(model, images):
    return model(pixels=images.flatten(1))["logits"]

def load():
    torch.manual_seed(0)
    return _shared.trained(Reader(), forward), [{"pixels": b.flatten(1)} for b in _shared.batches()]

def metric(model):
    return _shared.accuracy(forward, model)
'''

BROKEN = 'METRIC = "none"\n\ndef load():\n    raise OSError("the weights are\\nnot there")\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("loaders")
    files = {"_shared": SHARED, "convolution": CONVOLUTION, "words": WORDS, "broken": BROKEN, "notes": "X = 1\n"}
    for name, text in files.items():
        (path / f"{name}.py").write_text(text, "utf-8")
    return path


@pytest.fixture(autouse=True)
def march() -> Iterator[None]:
    with march_set_to(March.BAYES):
        yield


def test_folder_lists_what_defines_load_only(folder: Path) -> None:
    assert loader_names(folder) == ["broken", "convolution", "words"]


def test_network_that_traces_is_measured_in_every_stage_and_by_both_peers(folder: Path) -> None:
    pytest.importorskip("onnxruntime.quantization")
    with importable(folder):
        result = real_models.measure("convolution", has_peers=True)

    assert result.failures == {}
    assert list(result.metrics) == [*real_models.STAGES, *real_models.PEERS]
    assert result.metrics["float"] > 0.9
    assert all(abs(value - result.metrics["float"]) <= 0.03 for value in result.metrics.values()), result.metrics
    assert result.ops is not None
    assert (result.ops.quantized, result.ops.left) == (result.ops.total, {})
    assert result.codes is not None
    assert result.codes.different == 0 < result.codes.codes
    assert "_shared" not in sys.modules, "modules of the folder are forgotten"


def test_network_with_keyword_inputs_and_a_branch_is_measured_and_the_peer_that_cannot_says_why(folder: Path) -> None:
    with importable(folder):
        result = real_models.measure("words", has_peers=True)

    assert set(result.failures) == {"torch.ao FX"}
    assert "len" in result.failures["torch.ao FX"]
    assert result.metrics["integers"] == result.metrics["ONNX Runtime"]
    assert abs(result.metrics["integers"] - result.metrics["float"]) <= 0.03


def test_table_has_a_row_for_each_network_and_failures_in_place(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert real_models.main(["--dir", str(folder), "--models", "broken", "convolution", "--no-peers"]) == 0

    out = capsys.readouterr().out
    assert "load failed: OSError: the weights are not there" in out
    rows = {line.split()[0]: line.split() for line in out.splitlines()[-2:]}
    assert rows["broken"][1] == "failed"
    assert rows["convolution"][-2] == "yes"
    assert "torch.ao" not in out


def test_wrong_arguments_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert real_models.main(["--dir", str(folder / "nowhere")]) == 2
    assert real_models.main(["--dir", str(folder), "--models", "convolutoin"]) == 2
    assert real_models.main([]) == 0

    captured = capsys.readouterr()
    assert "there is no such folder" in captured.err
    assert "no network convolutoin" in captured.err
    assert "--dir FOLDER" in captured.out


class Half(nn.Module):
    """One op between stubs, one behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.linear, self.dequant = QuantStub(), nn.Linear(4, 4), DeQuantStub()
        self.tail = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.tail(self.dequant(self.linear(self.quant(x))))
        return out


def converted_half() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model, x = Half(), torch.randn(5, 4)
    model.tail.qconfig = None  # type: ignore[assignment]
    return convert(eager(model, [x]).eval()), x


def test_float_op_is_counted_with_its_reason() -> None:
    model, x = converted_half()

    counts = count_ops(model, (x,), [QuantEffect("tail", "None", "torch.float32", "tail was told to stay")])

    assert counts.left == {"it was told to stay": ["tail"]}
    assert (counts.quantized, counts.total) == (1, 2)


def test_codes_that_differ_are_counted_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = converted_half()
    same = compare_codes(model, (x,))

    def one_off(*args: Any) -> list[torch.Tensor]:
        results = run_session(*args)
        results[-1].view(-1)[0] ^= 1
        return results

    monkeypatch.setattr(_runtime, "run_session", one_off)
    other = compare_codes(model, (x,))

    assert (same.different, other.different) == (0, 1)
    assert str(other) == f"1 of {same.codes} codes differ in ONNX Runtime, the first at {other.first}"
    assert other.first


def test_runtime_model_takes_inputs_of_other_shapes() -> None:
    model, x = converted_half()
    in_runtime = RuntimeModel(model)

    for batch in (x, x[:2], torch.cat([x, x])):
        torch.testing.assert_close(in_runtime(batch), model(batch), rtol=1e-6, atol=1e-6)
