"""Networks of many kinds: a report with numbers, and every op that stays in float is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from profiler import model_profiler
from tests.api.odd_models import ODD
from tests.api.quick import write_quickly
from tests.capture.stages import assert_untouched

IN_FLOAT = {  # ops that later become integer ones shrink this table
    "siamese": {"cosine_similarity_0"},
    "constant_added": {"add_1"},
    "masked_in_place": {"MaskInPlace"},
    "weight_norm": {"0"},
}


@pytest.mark.parametrize("name", ODD)
def test_odd_network_gives_a_report(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiler.report.write.write_report", write_quickly)
    torch.manual_seed(1)
    model, batch = ODD[name]()
    report = assert_untouched(model, lambda: model_profiler(model, [batch] * 3, out_dir=tmp_path))
    in_float = {e.op for e in report.data.effects if e.actual == "torch.float32" and e.reason}
    assert in_float <= IN_FLOAT.get(name, set()), {e.op: e.reason for e in report.data.effects}
    assert len(report.data.comparisons) == 2
    for comparison in report.data.comparisons:
        coverage = comparison.coverage
        assert coverage.executed == coverage.compared + sum(coverage.reasons.values())
        assert set(coverage.reasons) <= {
            "integer or bool output: counted, not compared",
            "passes its input on: fused into the op before it",
        }
        for layer in comparison.layers:
            if layer.is_output:
                assert layer.accumulated.sqnr_db > 30
            elif layer.status == "compared":
                assert layer.injected is not None, layer.name
                assert layer.injected.sqnr_db > 20, layer.name


class PackedSequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 2]), batch_first=True)
        y, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.fc(y)


class NoiseInForward(nn.Module):
    """Draws random numbers in eval too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(x + torch.randn_like(x))


@pytest.mark.parametrize(("model", "shape"), [(PackedSequence, (2, 3, 4)), (NoiseInForward, (2, 2, 6, 6))])
def test_odd_forward_gives_the_same_output_within_int8(
    model: type[nn.Module], shape: tuple[int, ...], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    report = model_profiler(model(), [torch.randn(shape)] * 3, out_dir=tmp_path, make_zip=False)
    assert [layer.accumulated.sqnr_db > 25 for layer in report.layers if layer.is_output] == [True]


class CellStates(nn.Module):
    """The cell state is several times as large as the output, and has a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, (_, cell) = self.lstm(x)
        return y, cell


def test_op_with_outputs_of_different_scales_is_held_to_each_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("profiler.report.write.write_report", write_quickly)
    torch.manual_seed(3)
    model = CellStates().eval()
    with torch.no_grad():
        model.lstm.bias_ih_l0[6:12] = 4.0  # the forget gate stays open
    batches = [torch.randn(4, 30, 4).cumsum(1) * 0.3 for _ in range(3)]
    largest = [float(value.detach().abs().max()) for value in model(batches[0])]
    assert largest[1] > 3 * largest[0]

    report = model_profiler(model, batches, out_dir=tmp_path)

    assert "RG2" not in [finding.id for finding in report.findings]
