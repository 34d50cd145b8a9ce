"""Arguments of a forward that tracing must take by value: None, flags, numbers."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from profiler.quant.ops.functional import tensors_in


def python_arguments(model: nn.Module, example_inputs: tuple[Any, ...] | None) -> dict[str, Any]:
    """Arguments that hold no tensor, by name; code such as `if mask is not None` needs their values.

    Args:
        model: its forward's signature names the inputs.
        example_inputs: inputs in the order of the forward's parameters, keyword-only ones too; None: nothing is known.
    """
    if example_inputs is None:
        return {}
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    fixed = {}
    for name, given in zip(inspect.signature(model.forward).parameters.items(), example_inputs, strict=False):
        if name[1].kind in kinds:
            break
        if not tensors_in(given):
            fixed[name[0]] = given
    return fixed
