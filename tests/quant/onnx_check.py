"""Holds a converted model against ONNX Runtime on its exported file, op by op."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from profiler.quant import QTensor
from profiler.quant.deploy.batch import BatchInputs, free_batch
from profiler.quant.deploy.export import Exported, OpMark, record_model
from profiler.quant.deploy.session import make_session, run_session
from profiler.quant.deploy.structure import bind_inputs, flat_tensors, on_cpu

FLOAT_RELATIVE = 1e-6


def assert_equals_onnx(
    model: nn.Module,
    *inputs: Any,
    int16_share: float = 0.9999,
    opt: int = 2,
    float_relative: float = FLOAT_RELATIVE,
    num_codes: int | None = None,
    example: Any = None,
) -> Exported:
    """Every integer tensor that an op gives equals the one in ONNX Runtime; final float outputs to 1e-6 relative.

    Args:
        model: converted model in eval.
        inputs: what its forward takes.
        int16_share: least share of equal codes of an int16 tensor; the others may be 1 apart.
        opt: graph optimisation level of ONNX Runtime, 0 to 3.
        float_relative: largest error of a float output, of the output's largest magnitude.
        num_codes: how many integer tensors there must be at least; by default at least one.
        example: instead of `inputs`: a tuple of them, or a dict by parameter name.
    """
    given = inputs if example is None else example
    exported = record_model(model, given, mark_ops=True)
    onnx.checker.check_model(exported.proto, full_check=True)
    session = make_session(exported.proto, opt)
    tensors = flat_tensors(*bind_inputs(model, given))
    _assert_records_what_runs(model, given, exported)
    marks = [mark for mark in exported.marks if mark.value]
    names = list(dict.fromkeys([mark.value for mark in marks] + exported.output_names))
    actual = dict(zip(names, run_session(session, exported.input_names, tensors, names), strict=True))
    codes = [mark for mark in marks if not mark.tensor.is_floating_point()]
    assert len(codes) >= (1 if num_codes is None else num_codes), "no op of this model gives integer codes"
    for mark in codes:
        _assert_codes(mark, actual[mark.value], int16_share)
    for name, expected in zip(exported.output_names, exported.outputs, strict=True):
        _assert_output(name, expected, actual[name], float_relative)
    return exported


def assert_free_batch(
    model: nn.Module, *inputs: Any, sizes: Sequence[int] = (1, 2, 3, 6), example: Any = None
) -> Exported:
    """The file with a free batch size gives every integer of the model at several sizes, with rows of other contents.

    Args:
        model: converted model in eval.
        inputs: what its forward takes.
        sizes: batch sizes to run.
        example: instead of `inputs`: a tuple of them, or a dict by parameter name.
    """
    given = inputs if example is None else example
    record = partial(record_model, model, mark_ops=True)
    batch = BatchInputs.of(model, given, None)
    freed = free_batch(record(given), batch, record, 2)
    onnx.checker.check_model(freed.proto, full_check=True)
    session = make_session(freed.proto, 2)
    values = {mark.name: mark.value for mark in freed.marks if mark.value}
    for size in sizes:
        expected = record(batch.at(size, is_varied=True))
        wanted = {values[m.name]: m for m in expected.marks if m.value and not m.tensor.is_floating_point()}
        names = [*wanted, *freed.output_names]
        actual = dict(zip(names, run_session(session, freed.input_names, expected.inputs, names), strict=True))
        for name, mark in wanted.items():
            _assert_codes(mark, actual[name], 0.9999)
        for name, output in zip(freed.output_names, expected.outputs, strict=True):
            _assert_output(name, output, actual[name], FLOAT_RELATIVE)
    return freed


@torch.no_grad()
def _assert_records_what_runs(model: nn.Module, inputs: Any, exported: Exported) -> None:
    """The model as it runs by itself, with its fast kernels, gives the very same outputs."""
    args, kwargs = on_cpu(bind_inputs(model, inputs))
    outputs = flat_tensors((model(*args, **kwargs),), {})
    assert len(outputs) == len(exported.outputs)
    for name, output, recorded in zip(exported.output_names, outputs, exported.outputs, strict=True):
        plain = output.plain if isinstance(output, QTensor) else output
        assert torch.equal(torch.nan_to_num(plain), torch.nan_to_num(recorded)), f"output {name} differs while recorded"


def _assert_codes(mark: OpMark, actual: Tensor, int16_share: float) -> None:
    expected = mark.tensor
    where = f"{mark.name} ({mark.kind}) -> {mark.value}, {mark.source}"
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), f"{where}: {actual.dtype} {actual.shape}"
    if torch.equal(actual, expected):
        return
    apart = (actual.to(torch.int64) - expected.to(torch.int64)).abs()
    share = float((apart == 0).double().mean())
    message = (
        f"{where}: first op that differs: {int((apart > 0).sum())} of {apart.numel()} elements, "
        f"by at most {int(apart.max())} codes"
    )
    assert expected.dtype == torch.int16, message
    assert int(apart.max()) <= 1, message
    assert share >= int16_share, message


def _assert_output(name: str, expected: Tensor, actual: Tensor, float_relative: float) -> None:
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), f"output {name}: {actual.dtype}"
    if not expected.is_floating_point():
        assert torch.equal(actual, expected), f"output {name}: {int((actual != expected).sum())} elements differ"
        return
    limit = float_relative * max(float(expected.abs().max()) if expected.numel() else 0.0, 1e-30)
    torch.testing.assert_close(actual, expected, rtol=0, atol=limit, equal_nan=True, msg=lambda m: f"{name}: {m}")
