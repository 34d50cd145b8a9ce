"""check_deploy_device: which op runs on the accelerator, and which kernels ONNX Runtime really ran for it."""

from __future__ import annotations

import json
import logging
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import fx, nn

from profiler.errors import ConfigError
from profiler.quant.deploy.guards import integer_modules, require_quantized
from profiler.quant.deploy.layers import LayerFact, collect_layers
from profiler.quant.deploy.structure import bind_inputs, flat_tensors
from profiler.quant.naming import canonical_function_name, op_name
from profiler.quant.states import named_fake_quants

_LOG = logging.getLogger(__name__)
BPU, CPU = "BPU", "CPU"
_STUBS = ("quant_stub", "dequant_stub")
_FLOAT_PRODUCTS = frozenset({"Conv", "MatMul", "Gemm", "ConvTranspose", "FusedConv", "FusedMatMul", "FusedGemm"})


@dataclass(frozen=True)
class DevicePlace:
    """Where one op runs.

    Attributes:
        device: "BPU" (the accelerator) or "CPU"; emulated, from the model's own structure.
        type: "module", "function" or "method".
        kernels: ONNX Runtime's kernels, in order, each with its number of runs; empty if it was not asked.
        arithmetic: "integer", "float", or "" if ONNX Runtime was not asked.
    """

    device: str
    type: str
    kernels: tuple[tuple[str, int], ...] = ()
    arithmetic: str = ""

    def __iter__(self) -> Iterator[str]:
        """Unpacks as (device, type)."""
        return iter((self.device, self.type))


def check_deploy_device(
    model: nn.Module, example_inputs: Any = None, print_tabulate: bool = True, out_dir: str | Path | None = None
) -> dict[str, DevicePlace]:
    """Which ops run on the accelerator: those on quantized values. Stubs and float ops run on the CPU.

    With example inputs a converted model is also run by ONNX Runtime with its profiler on, and each op is told the
    kernels that really ran. The devices are emulated; nothing runs on vendor hardware.

    Args:
        model: prepared or converted model in eval; without example inputs one from prepare_qat_fx.
        example_inputs: a tensor, a tuple or list of inputs, or a dict by parameter name.
        print_tabulate: log the table.
        out_dir: folder for `deploy_device.txt`; the current one by default.

    Returns:
        op name -> place, which unpacks as (device, type).

    Raises:
        ConfigError: no example inputs for a model without an fx graph.
    """
    require_quantized(model, "check_deploy_device")
    if example_inputs is not None:
        places = _from_run(model, example_inputs)
    elif isinstance(model, fx.GraphModule):
        places = _from_graph(model)
    else:
        raise ConfigError("check_deploy_device: an eager model has no graph; pass example_inputs")
    text = _table(places)
    folder = Path(out_dir or ".")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "deploy_device.txt").write_text(text, "utf-8")
    if print_tabulate:
        _LOG.info("%s", text)
    return places


def _from_run(model: nn.Module, example_inputs: Any) -> dict[str, DevicePlace]:
    layers = collect_layers(model, example_inputs)
    kernels = _kernels(model, example_inputs, layers) if integer_modules(model) else {}
    places = {}
    for layer in layers:
        device = BPU if layer.is_quantized and layer.operator not in _STUBS else CPU
        kind = "function" if layer.module is None else "module"
        ran = kernels.get(layer.name, {})
        arithmetic = "" if not ran else "float" if _FLOAT_PRODUCTS & set(ran) or not layer.is_quantized else "integer"
        places[layer.name] = DevicePlace(device, kind, tuple(ran.items()), arithmetic)
    return places


def _kernels(model: nn.Module, example_inputs: Any, layers: list[LayerFact]) -> dict[str, dict[str, int]]:
    """Op call -> kernel -> runs, from ONNX Runtime's own profile."""
    from profiler.quant.deploy.export import record_model
    from profiler.quant.deploy.session import make_session, run_session

    exported = record_model(model, example_inputs)
    with tempfile.TemporaryDirectory() as folder:
        session = make_session(exported.proto, 2, str(Path(folder) / "profile"))
        run_session(session, exported.input_names, flat_tensors(*bind_inputs(model, example_inputs)))
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    names = sorted((layer.name for layer in layers), key=len, reverse=True)
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for event in events:
        if event.get("cat") != "Node" or not event.get("name", "").endswith("_kernel_time"):
            continue
        owner = next((name for name in names if event["name"].startswith(f"{name}/")), "")
        kernel = event["args"]["op_name"]
        found[owner][kernel] = found[owner].get(kernel, 0) + 1
    return found


def _from_graph(model: fx.GraphModule) -> dict[str, DevicePlace]:
    """By following quantized values through the graph."""
    modules = dict(model.named_modules())
    quantized: dict[fx.Node, bool] = {}
    places: dict[str, DevicePlace] = {}
    counts: Counter[str] = Counter()
    for node in model.graph.nodes:
        has_quantized = any(quantized[source] for source in node.all_input_nodes)
        quantized[node] = has_quantized
        kind = {"call_module": "module", "call_function": "function", "call_method": "method"}.get(node.op)
        if kind is None:
            continue
        stub = ""
        if kind == "module":
            module = modules[str(node.target)]
            stub = type(module).__name__ if type(module).__name__.endswith(("QuantStub", "DeQuantStub")) else ""
            quantized[node] = not stub.startswith("DeQuant") and (has_quantized or _has_scale(module))
            name = op_name(str(node.target))
        else:
            function = canonical_function_name(node.target)
            name = f"{function}_{counts[function]}"
            counts[function] += 1
        places[name] = DevicePlace(BPU if quantized[node] and not stub else CPU, kind)
    return places


def _has_scale(module: nn.Module) -> bool:
    return bool(integer_modules(module)) or any(True for _ in named_fake_quants(module))


def _table(places: dict[str, DevicePlace]) -> str:
    """Aligned text: our table, and beside it what ONNX Runtime ran."""
    head = ("name", "deploy device", "type", "arithmetic", "kernels that ONNX Runtime ran")
    rows = [
        (
            name,
            p.device,
            p.type,
            p.arithmetic or "-",
            ", ".join(f"{n}x{k}" if n > 1 else k for k, n in p.kernels) or "-",
        )
        for name, p in places.items()
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
             for row in [head, tuple("-" * w for w in widths), *rows]]  # fmt: skip
    return "\n".join(lines) + "\nDevices are emulated from the model's structure; no vendor hardware ran.\n"
