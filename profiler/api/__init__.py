"""model_profiler: the one call. Wires preparing, measuring, explaining and reporting together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from profiler.api.options import DEFAULT_OUT_DIR, Options, Progress, eager_module
from profiler.api.pair_form import profile_pair
from profiler.api.workflow import profile_model
from profiler.errors import ConfigError
from profiler.profile_report import ProfileReport

__all__ = ["DEFAULT_OUT_DIR", "model_profiler"]


def model_profiler(
    model: nn.Module,
    data: Any,
    example_inputs: Any = None,
    mode: str | None = None,
    out_dir: str | Path | None = None,
    kwargs_dict: dict[str, dict[str, Any]] | None = None,
    *,
    march: str | None = None,
    qconfig_dict: Any = None,
    frontend: str = "auto",
    batch_process_func: Callable[[Any], Any] | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    num_batches: int = 32,
    make_zip: bool = True,
    progress: Progress | None = None,
) -> ProfileReport:
    """Say where, why and how to repair the accuracy that a model loses in int8.

    Two forms. `model_profiler(model, data)`: a float model is calibrated on the data, compared with its fake-quant
    form, converted, and
    compared again; a prepared model (calib or qat) is compared with itself with fake quant off, then converted.
    `model_profiler(model1, model2, example_inputs, mode)`: two given stages are compared on one batch.

    The user's models are copied and come back unchanged.

    Args:
        model: float model or prepared model (first form); the earlier stage (second form).
        data: one batch (tensor, tuple of arguments, dict of keyword arguments) or an iterable of batches; or the
        later stage.
        example_inputs: second form: one batch.
        mode: second form: "FvsQ" (float -> calib or qat), "QvsQ" (qat -> quantized) or "CvsQ" (calib -> qat).
        out_dir: folder of the report; `./profiler_out` if None.
        kwargs_dict: second form: arguments of the original's tools by tool name.
        march: target, for example "bayes"; the one set by `set_march`, else BAYES.
        qconfig_dict: as `prepare_qat_fx` takes it, a QConfig or a QconfigSetter; by default int8 calibration with
            high-precision outputs.
        frontend: "auto", "fx" (symbolic tracing) or "record" (recorded runs); see `profiler.quant.quantize`.
        batch_process_func: turns a batch of the data into what the model takes.
        evaluate: `evaluate(model) -> number`, called on every stage.
        num_batches: how many batches of the data are used, at most.
        make_zip: also write profiler.zip.
        progress: told `(step, done, total)`.

    Returns:
        The report; its files lie in `out_dir`, an older report there is replaced as a whole.

    Raises:
        ModelError: not a module, NaN in its weights, or its forward raises.
        DataError: no data, or data that does not fit.
        ConfigError: an argument cannot be used.
        PrepareError: the model cannot be prepared.
        ReportError: out_dir cannot be written.
    """
    model = eager_module(model)
    data = eager_module(data) if isinstance(data, nn.Module) else data
    options = Options(
        out_dir=Path(out_dir if out_dir is not None else DEFAULT_OUT_DIR),
        march=march,
        qconfig_dict=qconfig_dict,
        frontend=frontend,
        batch_process_func=batch_process_func,
        evaluate=evaluate,
        num_batches=num_batches,
        make_zip=make_zip,
        progress=progress,
    )
    if isinstance(data, nn.Module):
        return profile_pair(model, data, example_inputs, mode, options, kwargs_dict or {})
    if example_inputs is not None or mode is not None or kwargs_dict:
        raise ConfigError(
            "example_inputs, mode and kwargs_dict belong to model_profiler(model1, model2, example_inputs, "
            "mode); with data as the "
            "second argument leave them out"
        )
    return profile_model(model, data, options)
