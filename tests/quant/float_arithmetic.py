"""Watches every torch function of a converted model's forward and names float arithmetic the numeric model forbids."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from profiler.quant.naming import NOT_OPS, canonical_function_name
from profiler.quant.requantize import FLOAT32_EXACT, FLOAT64_EXACT

# Where the numeric model itself says float: rounding of codes, and the stubs and scale arithmetic around them.
ROUNDING = {
    ("requantize.py", "requantize"),
    ("requantize.py", "requantize_rows"),
    ("integer_run.py", "_in_accumulator_steps"),
    ("integer_run.py", "_add_up"),
    ("epilogue.py", "in_accumulator_steps"),
    ("add.py", "add_codes"),
    ("operands.py", "rescaled"),
    ("operands.py", "codes_of_steps"),
    ("extremes.py", "maximum_codes"),  # of operands in output steps, before the one rounding
    ("extremes.py", "minimum_codes"),
    ("select.py", "where_codes"),
    ("matmul.py", "baddbmm_codes"),
    ("arithmetic.py", "div_codes"),  # one float32 division of exact integers
    ("compare.py", "compare"),  # real values are compared, the results are booleans
    ("relu.py", "relu6_codes"),
    ("norm.py", "_centred"),  # float64 square root and division of exact integer sums
    ("norm.py", "_affine_codes"),
    ("softmax.py", "_share_codes"),  # float64 division of exact integer sums
    ("softmax.py", "log_softmax_codes"),
    ("prelu.py", "prelu_codes"),  # multipliers
    ("affine.py", "quantize"),
    ("affine.py", "dequantize"),
    ("affine.py", "round_half_even"),
    ("affine.py", "along_axis"),
}
# Scales, multipliers, divisors and the weights' plans: functions of parameters and shapes, never of activations.
PARAMETERS = {
    ("gemm.py", "_make_plan"), ("gemm.py", "_weight_that_fits_bias"), ("gemm.py", "_plan"),
    ("pool.py", "_multiplier"),
    ("lookup.py", "make_table"), ("softmax.py", "_exp_table"), ("softmax.py", "_log_tables"),
    ("requantize.py", "carrier_dtype"),
}  # fmt: skip
MOVES = NOT_OPS | set(
    "to reshape as_subclass view contiguous expand clone detach isfinite empty narrow permute".split()
)
# High-precision output: the accumulator times its scale.
HIGH_PRECISION = {("gemm.py", "_output"), ("integer_run.py", "_make_real"), ("integer_run.py", "_place")}
STUBS = {("stubs.py", "forward")}
EXEMPTED = ROUNDING | PARAMETERS | HIGH_PRECISION | STUBS


class FloatArithmetic(TorchFunctionMode):
    """Collects violations; `num_products` counts the integer products that ran on a float carrier."""

    def __init__(self) -> None:
        super().__init__()
        self.violations: list[str] = []
        self.num_products = 0
        self.num_functions = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = canonical_function_name(func)
        with torch._C.DisableTorchFunction():
            self._check(name, [*tensors((args, kwargs)), *tensors(result)])
        return result

    def _check(self, name: str, values: list[Tensor]) -> None:
        self.num_functions += 1
        floats = [v for v in values if v.is_floating_point()]
        if name in MOVES or all(v.dim() == 0 for v in floats):  # moves, and arithmetic on scales
            return
        if core_places() & EXEMPTED:
            return
        if all(is_carried_integer(v) for v in floats):
            self.num_products += 1
            return
        self.violations.append(f"{name} on {[tuple(v.shape) for v in floats]}")


def tensors(nest: Any) -> list[Tensor]:
    return [v.as_subclass(Tensor) for v in tree_leaves(nest) if isinstance(v, Tensor)]


def is_carried_integer(value: Tensor) -> bool:
    """Whether a float tensor holds integers that its type carries exactly."""
    if value.numel() == 0:
        return True
    limit = {torch.float32: FLOAT32_EXACT, torch.float64: FLOAT64_EXACT}.get(value.dtype, 0)
    return bool((value == value.round()).all()) and float(value.abs().max()) < limit


def core_places() -> set[tuple[str, str]]:
    """(file, function) of every frame of the quantization core on the stack."""
    found, frame = set(), sys._getframe(1)
    while frame is not None:
        if "/profiler/quant/" in frame.f_code.co_filename:
            found.add((frame.f_code.co_filename.rpartition("/")[2], frame.f_code.co_name))
        frame = frame.f_back  # type: ignore[assignment]
    return found


class Watched(nn.Module):
    """The model between its stubs: what enters must be codes, what happens inside is watched."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, FloatArithmetic]:
        with FloatArithmetic() as watch:
            result = self.model(*args, **kwargs)
        return result, watch


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Weight tensor of every module that has one."""
    return {n: m.weight for n, m in model.named_modules() if isinstance(getattr(m, "weight", None), Tensor)}
