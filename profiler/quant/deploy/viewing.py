"""ONNX files to look at: nodes carry the names of the model's ops."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from profiler.errors import ConfigError
from profiler.quant.deploy.export import record_model
from profiler.quant.deploy.guards import require_converted, require_quantized

_LOG = logging.getLogger(__name__)


def export_to_onnx(
    model: nn.Module,
    args: Any,
    f: str | Path,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    **torch_options: Any,
) -> None:
    """Write a prepared or converted model as ONNX, to look at it in a viewer.

    Args:
        model: calib or qat model in VALIDATION, or a converted one, in eval.
        args: a tensor, a tuple or list of inputs, or a dict by parameter name.
        f: path of the file.
        input_names: names of the inputs; forward's parameters by default.
        output_names: names of the outputs; the keys of a dict by default.
        torch_options: options of torch.onnx.export that callers of the original pass; they have no effect here.

    Raises:
        ModelError: a float model.
        StateError: training mode or live observers.
        UnsupportedOpError: an operator without an ONNX form.
        ConfigError: another number of names than there are inputs or outputs, or a name that another value has.
    """
    require_quantized(model, "export_to_onnx")
    _export(model, args, Path(f), input_names, output_names, torch_options)


def export_quantized_onnx(
    model: nn.Module,
    args: Any,
    f: str | Path,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    **torch_options: Any,
) -> None:
    """As `export_to_onnx`, for converted models only; what `compile_model` writes, without its metadata."""
    require_converted(model, "export_quantized_onnx")
    _export(model, args, Path(f), input_names, output_names, torch_options)


def _export(model: nn.Module, args: Any, path: Path, inputs: Any, outputs: Any, options: dict[str, Any]) -> None:
    if options:
        _LOG.info("export: options %s have no effect on this exporter", ", ".join(sorted(options)))
    exported = record_model(model, args)
    _rename(exported.proto.graph, exported.input_names, inputs, "input_names")
    _rename(exported.proto.graph, exported.output_names, outputs, "output_names")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(exported.proto.SerializeToString())


def _rename(graph: Any, names: list[str], wanted: Sequence[str] | None, argument: str) -> None:
    if wanted is None:
        return
    if len(wanted) != len(names) or len(set(wanted)) != len(wanted):
        raise ConfigError(f"{argument}={list(wanted)}: expected {len(names)} different names, for {names}")
    table = dict(zip(names, wanted, strict=True))
    used = {name for node in graph.node for name in (*node.input, *node.output)}
    used |= {value.name for value in (*graph.initializer, *graph.input, *graph.output)}
    taken = sorted((used - set(names)) & set(wanted))
    if taken:
        raise ConfigError(f"{argument}={list(wanted)}: {', '.join(taken)} names another value of this graph; rename it")
    for node in graph.node:
        node.input[:] = [table.get(name, name) for name in node.input]
        node.output[:] = [table.get(name, name) for name in node.output]
    for info in [*graph.input, *graph.output]:
        info.name = table.get(info.name, info.name)
