"""Plain forwards over batches: calibration, and errors that name the stage and the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from profiler.errors import DataError, ModelError, PrepareError, ProfilerError
from profiler.quant.batches import Batch
from profiler.quant.states import FakeQuantState, set_fake_quantize

Tell = Callable[[str, int, int], None]


def run_forward(model: nn.Module, batch: Batch, stage: str, index: int, *, is_first: bool = True) -> Any:
    """One plain forward without gradients.

    Args:
        model: a stage.
        batch: arguments of its forward.
        stage: name of the stage.
        index: number of the batch.
        is_first: no other stage has run this batch.

    Raises:
        DataError, ModelError, PrepareError: the forward raised; see `forward_error`.
    """
    try:
        with torch.no_grad():
            return batch.run(model)
    except ProfilerError:
        raise
    except Exception as error:
        raise forward_error(stage, index, batch, error, is_first=is_first) from error


def forward_error(
    stage: str, index: int, batch: Batch, error: Exception, current: str = "", *, is_first: bool
) -> ProfilerError:
    """What to raise where the forward of a stage raised.

    Returns:
        DataError for the first batch (it does not fit the model), ModelError for a later one; PrepareError where an
        earlier stage of the model takes the batch.
    """
    place = f"; the last op that began was {current}" if current else ""
    what = f"{stage} model, batch {index} ({batch.shapes}): forward raised {type(error).__name__}: {error}{place}; "
    if not is_first:
        return PrepareError(what + "the stage before it takes this batch: set qconfig = None on the part that fails")
    kind = DataError if index == 0 else ModelError
    advice = "check that the batch is what the model expects (shape, dtype, preprocessing), or pass batch_process_func"
    return kind(what + advice)


def calibrate(calib: nn.Module, reference: nn.Module, batches: Sequence[Batch], tell: Tell) -> None:
    """Observe all batches, then put the model into VALIDATION.

    Args:
        calib: prepared model.
        reference: the float model that it was made from, to tell whose fault an error is.
        batches: arguments of the forwards.
        tell: told `(step, done, total)`.

    Raises:
        ModelError: the float model raises on a batch; PrepareError: only the prepared model does.
    """
    calib.eval()
    set_fake_quantize(calib, FakeQuantState.CALIBRATION)
    for index, batch in enumerate(batches):
        tell("calibrate", index, len(batches))
        try:
            run_forward(calib, batch, "calib", index, is_first=False)
        except PrepareError:
            run_forward(reference, batch, "float", index)
            raise
    tell("calibrate", len(batches), len(batches))
    calib.eval()
    set_fake_quantize(calib, FakeQuantState.VALIDATION)
