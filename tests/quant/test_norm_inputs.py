"""The default qconfigs: what norms and softmax read is int16, all else int8, in both front ends."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from profiler.quant import default_calib_8bit_fake_quant_qconfig, quantize
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.ops.arithmetic_cases import distance


class Block(nn.Module):
    """A transformer block whose residual stream has one channel that is far wider than the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(30, 16), nn.Parameter(torch.randn(8, 16))
        self.norm, self.last = nn.LayerNorm(16), nn.LayerNorm(16)
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 4)
        with torch.no_grad():
            self.down.bias[3] = 600.0
            self.last.weight.fill_(30.0)
            self.last.weight[3] = 0.0  # as trained ones do, it takes the wide channel out

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids) + self.position
        y = self.norm(x)
        scores = self.query(y) @ self.key(y).transpose(1, 2) / 4.0
        x = x + self.out(scores.softmax(-1) @ self.value(y))
        x = x + torch.dropout(self.down(torch.relu(self.up(x))), 0.1, self.training)
        out: torch.Tensor = self.head(self.last(x))
        return out


def ids(seed: int) -> torch.Tensor:
    return torch.randint(30, (4, 8), generator=torch.Generator().manual_seed(seed))


def dtypes(model: nn.Module) -> dict[str, str]:
    """Dtype of each quantizer of an activation, by the op's attribute."""
    found = {n: m for n, m in model.named_children() if hasattr(m, "activation_post_process")}
    return {n: m.activation_post_process.dtype for n, m in found.items() if m.activation_post_process is not None}


@pytest.mark.parametrize("frontend", ["fx", "record"])
def test_default_qconfigs_keep_a_stream_with_one_wide_channel(frontend: str) -> None:
    torch.manual_seed(0)
    model = Block().eval()
    batches = [ids(i) for i in range(4)]

    stages = quantize(model, batches, frontend=frontend)
    plain = quantize(model, batches, frontend=frontend, qconfig=default_calib_8bit_fake_quant_qconfig)

    expected = model(ids(9)).detach()
    errors = [distance(s.calib(ids(9)).detach(), expected) for s in (stages, plain)]
    assert errors[0] < 0.05
    assert errors[0] < errors[1] / 3
    assert distance(stages.quantized(ids(9)), stages.calib(ids(9)).detach()) < 0.02
    assert_equals_onnx(stages.quantized, ids(9))


@pytest.mark.parametrize("frontend", ["fx", "record"])
def test_default_qconfigs_are_int16_in_front_of_norms_and_softmax_only(frontend: str) -> None:
    torch.manual_seed(0)
    stages = quantize(Block().eval(), [ids(0)], frontend=frontend)

    found = dtypes(stages.calib)

    wide = {name for name, dtype in found.items() if dtype == "qint16"}
    assert {"down", "_generated_matmul_0", "_generated_div_0", "_generated_add_0", "_generated_add_1"} <= wide
    narrow = {name for name, dtype in found.items() if dtype == "qint8"}
    assert {"norm", "last", "query", "key", "value", "up", "_generated_softmax_0", "_generated_matmul_1"} <= narrow


def test_default_qconfigs_of_a_convolutional_network_are_int8() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()

    stages = quantize(model, [torch.randn(2, 3, 6, 6)])

    assert set(dtypes(stages.calib).values()) == {"qint8"}
