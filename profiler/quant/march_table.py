"""What each march can run, as data: operators, dtypes and limits of its op table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from profiler.quant.affine import qint8, qint16, qint32
from profiler.quant.march import March

FLOAT = "torch.float32"
_INT8 = frozenset({qint8})
_INT16 = frozenset({qint16})
_BOTH = _INT8 | _INT16


@dataclass(frozen=True)
class OpRule:
    """One row of a march's op table: dtypes of inputs and output, and a limit on the module ("" where it is met)."""

    inputs: frozenset[str] = _BOTH
    outputs: frozenset[str] = _BOTH
    limit: Callable[[Any], str] | None = None


@dataclass(frozen=True)
class MarchTable:
    """The op table of a march: rows by operator name; `default` for the others, None where they do not exist."""

    rows: dict[str, OpRule] = field(default_factory=dict)
    default: OpRule | None = None
    weights: frozenset[str] = _INT8


def _pair(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (int(value or 0),)


def _conv_limit(module: Any) -> str:
    if max(_pair(getattr(module, "kernel_size", 1))) >= 32:
        return f"kernel {tuple(module.kernel_size)}, the target has kernels below 32"
    channels = max(getattr(module, "in_channels", 0), getattr(module, "out_channels", 0))
    if channels > 8192:
        return f"{channels} channels, the target has at most 8192"
    if max(_pair(getattr(module, "dilation", 1))) > 16:
        return f"dilation {tuple(module.dilation)}, the target has at most 16"
    return ""


def _transpose_limit(module: Any) -> str:
    sides = _pair(getattr(module, "kernel_size", 2))
    return "" if all(2 <= side <= 14 for side in sides) else f"kernel {sides}, the target has kernels of 2 to 14"


_GEMM_OUT = _BOTH | {qint32, FLOAT}
_NARROW_GEMM_OUT = _INT8 | {qint32, FLOAT}
_CONV = OpRule(_BOTH, _GEMM_OUT, _conv_limit)
_TRANSPOSE = OpRule(_INT8, _INT8 | {FLOAT}, _transpose_limit)
_SPLICED = OpRule(_INT8, _BOTH)  # made of several operators, int16 inside
_ONLY_INT8 = OpRule(_INT8, _INT8)
_BOOLEAN = OpRule(_BOTH, frozenset({FLOAT, "qbool", qint8, qint16, qint32}))
_BOUNDARY = OpRule(_BOTH | {qint32, FLOAT}, _BOTH | {FLOAT})
_INDEX = {"argmax": _BOOLEAN, "compare": _BOOLEAN, "topk": OpRule(_BOTH, _BOTH | {FLOAT})}
_STUBS = {"quant_stub": _BOUNDARY, "dequant_stub": _BOUNDARY}

_BAYES = MarchTable(
    rows={
        **_INDEX, **_STUBS,
        "conv": _CONV, "conv1d": _CONV, "conv3d": _CONV, "batch_norm": OpRule(_BOTH, _GEMM_OUT),
        "conv_transpose1d": _TRANSPOSE, "conv_transpose2d": _TRANSPOSE, "conv_transpose3d": _TRANSPOSE,
        "linear": OpRule(_INT8, _GEMM_OUT), "matmul": OpRule(_BOTH, _GEMM_OUT), "baddbmm": OpRule(_BOTH, _GEMM_OUT),
        "layer_norm": _SPLICED, "softmax": _SPLICED, "log_softmax": _SPLICED, "softmin": _SPLICED,
        "group_norm": _SPLICED, "instance_norm": _SPLICED, "rms_norm": _SPLICED,
        "grid_sample": OpRule(_BOTH, _INT8), "div": OpRule(_INT16, _INT16),
    },
    default=OpRule(),
)  # fmt: skip

_BERNOULLI = MarchTable(
    rows={
        **_STUBS,
        "conv": OpRule(_INT8, _NARROW_GEMM_OUT, _conv_limit), "conv_transpose2d": _TRANSPOSE,
        "batch_norm": OpRule(_INT8, _NARROW_GEMM_OUT), "matmul": OpRule(_INT8, _NARROW_GEMM_OUT),
        "add": OpRule(), "add_relu": OpRule(), "sub": OpRule(), "mul": OpRule(), "cat": OpRule(), "stack": OpRule(),
        "mean": OpRule(_INT8, _BOTH), "sum": OpRule(_INT8, _BOTH), "argmax": _BOOLEAN,
        **dict.fromkeys(
            "maximum extremes relu relu6 exp sigmoid tanh silu gelu interpolate pad pixel_shuffle max_pool avg_pool2d "
            "adaptive_avg_pool2d shape dropout identity".split(), _ONLY_INT8
        ),
    }
)  # fmt: skip

_NASH = MarchTable({**_BAYES.rows, **dict.fromkeys(
    ("linear", "layer_norm", "softmax", "log_softmax", "softmin", "group_norm", "instance_norm", "rms_norm"),
    OpRule(_BOTH, _GEMM_OUT))}, OpRule())  # fmt: skip
_NASH_WIDE_WEIGHTS = MarchTable(_NASH.rows, _NASH.default, _BOTH)
_FLOAT16_RULE = OpRule(_BOTH | {FLOAT, "torch.float16"}, _BOTH | {FLOAT, "torch.float16"})
_NASH_FLOAT = MarchTable(
    {name: _NASH.rows[name] for name in ("conv", "conv1d", "conv3d", "linear", "matmul", "baddbmm")}, _FLOAT16_RULE
)

OUTPUT_ONLY = frozenset({"argmax", "extremes"})
"""Operators whose result nothing may read on the BERNOULLI family: argmax, and max over an axis."""

MARCH_TABLES: dict[March, MarchTable] = {
    March.BERNOULLI: _BERNOULLI,
    March.BERNOULLI2: _BERNOULLI,
    March.BAYES: _BAYES,
    March.BAYES_E: _BAYES,
    March.NASH_E: _NASH_WIDE_WEIGHTS,
    March.NASH_M: _NASH_WIDE_WEIGHTS,
    March.NASH_B: _NASH,
    March.NASH_P: _NASH_FLOAT,
    March.NASH_H: _NASH_FLOAT,
}


def unsupported_reason(
    march: March, spec_name: str, input_dtypes: Sequence[str], output_dtype: str, module: nn.Module | None = None
) -> str:
    """Why a march cannot run an operator; "" where it can.

    Args:
        march: the target.
        spec_name: name in the operator table.
        input_dtypes: dtypes of the quantized operands ("qint8", "qint16"; "torch.float32" for a float one).
        output_dtype: dtype of the result; "torch.float32" for a high-precision output, "" for the input's.
        module: the module, for limits on its shape and its weight's dtype.

    Source:
        The op tables that the original's 1.x manual prints for BERNOULLI2 and BAYES. The tables of the NASH family are
        not public: there every operator of the BAYES column counts as supported. BERNOULLI2's "no constant operand
        for add, mul" is not told: a converted model gives a constant codes and a scale as it does any operand.
    """
    table = MARCH_TABLES[march]
    rule = table.rows.get(spec_name, table.default)
    if rule is None:
        return f"{march.value} has no {spec_name}"
    wrong = sorted({dtype for dtype in input_dtypes if dtype not in rule.inputs})
    if wrong:
        return (
            f"{march.value} has no {spec_name} with {', '.join(wrong)} input; it has {', '.join(sorted(rule.inputs))}"
        )
    if output_dtype and output_dtype not in rule.outputs:
        has = ", ".join(sorted(rule.outputs))
        return f"{march.value} has no {spec_name} with {output_dtype} output; it has {has}"
    weight = _weight_dtype(module)
    if weight and weight not in table.weights:
        return f"{march.value} has no {weight} weights; it has {', '.join(sorted(table.weights))}"
    limit = rule.limit(module) if rule.limit is not None and module is not None else ""
    return f"{march.value}: {spec_name} with {limit}" if limit else ""


def _weight_dtype(module: nn.Module | None) -> str:
    fake_quant = getattr(module, "weight_fake_quant", None)
    return str(getattr(fake_quant, "dtype", "") or getattr(module, "weight_dtype", ""))
