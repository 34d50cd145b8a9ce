"""Runs an ONNX model in ONNX Runtime on torch tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")


def make_session(model: Any, opt: int = 2, profile_prefix: str | None = None) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU.

    Args:
        model: `onnx.ModelProto`, its bytes, or a path.
        opt: 0 (as written) to 3 (all graph optimisations).
        profile_prefix: write a profile of each node to files that begin like this.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[opt])
    options.log_severity_level = 3
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    source = model.SerializeToString() if hasattr(model, "SerializeToString") else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_session(
    session: Any, names: Sequence[str], tensors: Sequence[Tensor], outputs: Sequence[str] | None = None
) -> list[Tensor]:
    """Outputs (all, or those named) as torch tensors."""
    known = {item.name for item in session.get_inputs()}
    feeds = {n: t.detach().cpu().contiguous().numpy() for n, t in zip(names, tensors, strict=True) if n in known}
    results = session.run(None if outputs is None else list(outputs), feeds)
    return [torch.from_numpy(array.copy()) for array in results]
