"""perf_model: operations, bytes and estimated time of every layer."""

from __future__ import annotations

import html
import json
import logging
from pathlib import Path
from typing import Any

from torch import nn

from profiler.quant.deploy.cost_model import NOTE, speed_of, time_us
from profiler.quant.deploy.guards import parse_opt, require_quantized, target_march
from profiler.quant.deploy.layers import LayerFact, collect_layers
from profiler.quant.march import March

_LOG = logging.getLogger(__name__)
_SUMS = ("flops", "bytes", "time_us")
_COLUMNS = {"name": "Op", "type": "Type", "dtypes": "Dtypes", "output": "Output", "flops": "Operations",
            "bytes": "Bytes", "time_us": "Time (us)", "share_percent": "Share (%)"}  # fmt: skip


def perf_model(
    module: nn.Module,
    example_inputs: Any,
    march: March | str | None = None,
    out_dir: str | Path = ".",
    name: str | None = None,
    input_source: Any = "ddr",
    opt: int | str = "O3",
    balance_factor: int = 2,
    progressbar: bool = True,
    jobs: int = 16,
    layer_details: bool = False,
) -> dict[str, Any]:
    """Estimate a quantized model's cost on a target; writes `<name>.json` and `<name>.html`.

    Args:
        module: prepared (VALIDATION) or converted model in eval, or `torch.jit.trace` of one.
        example_inputs: a tensor, a tuple or list of inputs, or a dict by parameter name; any device.
        march: target; the one that is set by default.
        out_dir: folder of the files; made if it is not there.
        name: stem of the files; "perf" by default.
        input_source: accepted; input transfer is counted as bytes of the first op.
        opt: checked; the estimate does not depend on it.
        balance_factor: accepted.
        progressbar: accepted.
        jobs: accepted.
        layer_details: add input shapes and source line to each layer.

    Returns:
        `{"march", "note", "layers": [...], "total": {"flops", "bytes", "time_us", "fps"}}`; the layers add up to the
        total. Operations count two for each multiply-add, one per element of other results; bytes are operands,
        results and weights; time is in microseconds, estimated.

    Raises:
        ModelError: a float model.
        StateError: training mode or live observers.
    """
    parse_opt(opt)
    target = target_march(march)
    require_quantized(module, "perf_model")
    layers = [_row(layer, target, layer_details) for layer in collect_layers(module, example_inputs)]
    total = {key: sum(row[key] for row in layers) for key in _SUMS}
    for row in layers:
        row["share_percent"] = 100.0 * row["time_us"] / total["time_us"]
    total["fps"] = 1e6 / total["time_us"] if layers else 0.0
    speed = speed_of(target)
    result = {
        "march": target.value,
        "note": NOTE,
        "assumed": {"int8_ops_per_second": speed.int8_ops, "bytes_per_second": speed.bytes_per_second},
        "layers": layers,
        "total": total,
    }
    folder, stem = Path(out_dir), name or "perf"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.json").write_text(json.dumps(result, indent=1), "utf-8")
    (folder / f"{stem}.html").write_text(_page(result, stem), "utf-8")
    _LOG.info("perf_model: %d ops, %.1f us on %s. %s", len(layers), total["time_us"], target.value, NOTE)
    return result


def _row(layer: LayerFact, march: March, details: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": layer.name,
        "type": layer.kind,
        "dtypes": " ".join(t.dtype for t in layer.inputs) + " -> " + " ".join(t.dtype for t in layer.outputs),
        "output": "; ".join(str(list(t.shape)) for t in layer.outputs),
        "flops": layer.flops,
        "bytes": layer.num_bytes,
        "time_us": time_us(layer, march),
    }
    if details:
        row["inputs"] = [list(t.shape) for t in layer.inputs]
        row["source"] = layer.source
    return row


def _page(result: dict[str, Any], title: str) -> str:
    """A self-contained page: totals and one row per layer."""
    total = result["total"]
    head = "".join(f"<th>{html.escape(text)}</th>" for text in _COLUMNS.values())
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(_cell(row[key]))}</td>" for key in _COLUMNS) + "</tr>"
        for row in result["layers"]
    )
    sums = f"{total['flops']:,} operations, {total['bytes']:,} bytes, {total['time_us']:.1f} us"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title><style>'
        "body{font:14px sans-serif;margin:2em}td,th{padding:2px 10px;text-align:left;border-bottom:1px solid #ddd}"
        f"</style></head><body><h1>{html.escape(title)} on {result['march']}</h1><p>{sums}</p>"
        f"<p>{html.escape(result['note'])}</p><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n"
        "</tbody></table></body></html>\n"
    )


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
