"""A function as a module, and its ONNX form held against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from profiler.quant.deploy.export import Exported, record_model
from profiler.quant.deploy.session import make_session, run_session
from profiler.quant.deploy.structure import flat_tensors


class Function(nn.Module):
    """Calls a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def ints(*shape: int, low: int = -100, high: int = 100, dtype: torch.dtype = torch.int8, seed: int = 0) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_same_in_onnx(function: Callable[..., Any] | nn.Module, *inputs: Tensor, rel: float = 2e-6) -> Exported:
    """The function on the inputs, and on others of the same shapes, gives in ONNX Runtime what it gives in torch."""
    model = function if isinstance(function, nn.Module) else Function(function)
    model.eval()
    exported = record_model(model, tuple(t.clone() for t in inputs))
    onnx.checker.check_model(exported.proto, full_check=True)
    session = make_session(exported.proto, 0)
    for tensors in (inputs, tuple(t.flip(0) if t.dim() else t for t in inputs)):
        with torch.no_grad():
            result = model(*[t.clone() for t in tensors])
        expected = flat_tensors((result,), {})
        actual = run_session(session, exported.input_names, tensors, exported.output_names)
        assert len(expected) == len(actual)
        for e, a in zip(expected, actual, strict=True):
            assert (a.dtype, a.shape) == (e.dtype, e.shape)
            if not e.is_floating_point():
                assert torch.equal(a, e)
                continue
            finite = e[e.isfinite()].abs()
            limit = rel * max(float(finite.max()) if finite.numel() else 0.0, 1.0)
            torch.testing.assert_close(a, e, rtol=0, atol=limit, equal_nan=True)
    return exported
