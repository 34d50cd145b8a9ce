"""convert: from fake quant to integers, in eager mode."""

from __future__ import annotations

from typing import Any

from torch import nn

from profiler.quant.swap import convert_modules, copy_model

BEFORE_CONVERT = "quant_before_convert"  # what a front end does to its models first; gives what is to be done last


def convert(
    module: nn.Module,
    mapping: dict[Any, Any] | None = None,
    inplace: bool = False,
    remove_qconfig: bool = True,
    fast_mode: bool = False,
) -> nn.Module:
    """Integer model of a calibrated or trained model in eval.

    Args:
        module: prepared model, calibrated, `eval()`. Any fake-quant state will do.
        mapping: accepted for compatibility; the op table decides.
        inplace: change `module` instead of a copy.
        remove_qconfig: drop the `qconfig` attributes.
        fast_mode: accepted; there is one integer form.

    Raises:
        PrepareError: the model is not prepared, or converted already.
        StateError: the model is in training mode.
        NotCalibratedError: activations without a scale; the message names them.
    """
    if not inplace:
        module = copy_model(module)
    before: Any = module.__dict__.get(BEFORE_CONVERT)
    finish = before(module) if before is not None else None
    convert_modules(module, remove_qconfig)
    if finish is not None:
        finish()
    return module
