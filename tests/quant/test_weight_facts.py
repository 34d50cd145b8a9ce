"""What a model's own code reads of the weight of a converted module: facts of real values."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from profiler.quant import quantize


class ReadsDtype(nn.Module):
    """As transformers do: the input is cast to the weight's dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.linear = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x)
        cast = x.to(self.linear.weight.dtype)
        return self.linear(cast), torch.exp(cast)


def saved(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded: nn.Module = torch.load(buffer, weights_only=False)
    return loaded


@pytest.mark.parametrize("change", [lambda m: m, copy.deepcopy, lambda m: m.to("cpu"), saved])
@pytest.mark.parametrize("frontend", ["fx", "record"])
def test_a_cast_to_the_weights_dtype_keeps_real_values(frontend: str, change: object) -> None:
    torch.manual_seed(0)
    model = ReadsDtype().eval()
    batches = [(torch.randn(16, 8),) for _ in range(4)]
    quantized = quantize(model, batches, frontend=frontend).quantized
    assert quantized.linear.weight.dtype == torch.int8  # outside of a forward: the codes
    changed = change(quantized)  # type: ignore[operator]
    for real, got in zip(model(*batches[0]), changed(*batches[0]), strict=True):
        assert float((real - got).abs().max() / real.abs().max()) < 0.1
