"""Real networks through `quantize`, beside what ONNX Runtime and torch.ao make of them: metric, coverage, equality.

`python -m benchmarks.real_models --dir FOLDER [--models NAME ...] [--no-peers]`; docs/real_models.md says what a folder
holds. One network after the other; what fails says why and the others go on.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tabulate import tabulate
from torch import nn

from benchmarks._coverage import OpCounts, count_ops
from benchmarks._loaders import Batch, Loader, import_loader, importable, loader_names
from benchmarks._peers import PEERS
from benchmarks._runtime import CodeComparison, RuntimeModel, compare_codes
from benchmarks._stages import Network, quantized_network

T = TypeVar("T")
STAGES = ("float", "fake quant", "integers", "ONNX Runtime")
_SHOWN_NAMES = 4
_SHOWN_CHARACTERS = 160


@dataclass
class Result:
    """What is known of a network; a failure stands in place of what it kept from being measured."""

    name: str
    says: str = ""
    network: Network | None = None
    ops: OpCounts | None = None
    codes: CodeComparison | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def cell(self, row: str) -> str:
        """A metric for the table."""
        if row in self.metrics:
            return f"{self.metrics[row]:.3f}"
        return "failed" if row in self.failures else "-"


def measure(name: str, has_peers: bool) -> Result:
    """Everything about one network of the folder that is importable now."""
    result = Result(name)
    loader = _attempt(result, "load", lambda: import_loader(name))
    loaded = None if loader is None else _attempt(result, "load", loader.load)
    if loader is None or loaded is None:
        return result
    result.says = loader.says
    model, batches = loaded
    _metric(result, "float", loader, lambda: model)
    _measure_ours(result, loader, model, batches)
    for peer, make in PEERS.items() if has_peers else ():
        fresh = _attempt(result, peer, loader.load)  # a peer may change the model it is given
        if fresh is not None:
            _metric(result, peer, loader, lambda make=make, fresh=fresh: make(*fresh))  # type: ignore[misc]
    return result


def _measure_ours(result: Result, loader: Loader, model: nn.Module, batches: Sequence[Batch]) -> None:
    network = _attempt(result, "quantize", lambda: quantized_network(model, batches))
    if network is None:
        return
    result.network = network
    result.ops = _attempt(result, "ops", lambda: count_ops(network.quantized, batches[0], network.effects))
    _metric(result, "fake quant", loader, lambda: network.calib)
    _metric(result, "integers", loader, lambda: network.quantized)
    _metric(result, "ONNX Runtime", loader, lambda: RuntimeModel(network.quantized))
    result.codes = _attempt(result, "codes", lambda: compare_codes(network.quantized, batches[0]))


def _metric(result: Result, row: str, loader: Loader, make: Callable[[], nn.Module]) -> None:
    value = _attempt(result, row, lambda: loader.metric(make()))
    if value is not None:
        result.metrics[row] = value


def _attempt(result: Result, step: str, function: Callable[[], T]) -> T | None:
    """What the function gives; None, and a line in the failures, where it raises."""
    start = time.perf_counter()
    try:
        return function()
    except Exception as error:
        text = " ".join(str(error).split()) or "no message"
        result.failures[step] = f"{type(error).__name__}: {text}"
        return None
    finally:
        result.seconds[step] = result.seconds.get(step, 0.0) + time.perf_counter() - start


def print_details(result: Result, has_peers: bool) -> None:
    """What is known of one network, a line for each fact."""
    print(f"\n== {result.name}: {result.says}")
    if result.network is not None:
        print(f"  front end: {result.network.front_end}")
    if result.ops is not None:
        print(f"  ops quantized: {result.ops.quantized} of {result.ops.total} op calls")
        for reason, names in sorted(result.ops.left.items(), key=lambda item: -len(item[1])):
            shown = ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")
            print(f"  left in float: {len(names)}, {_shortened(reason)} ({shown})")
    for row in (*STAGES, *(PEERS if has_peers else ())):
        if row in result.metrics:
            print(f"  {row}: {result.metrics[row]:.4f}")
    if result.codes is not None:
        print(f"  codes: {result.codes}")
    for step, reason in result.failures.items():
        print(f"  {step} failed: {_shortened(reason)}")
    print("  seconds: " + ", ".join(f"{step} {seconds:.1f}" for step, seconds in result.seconds.items()), flush=True)


def print_table(results: Sequence[Result], has_peers: bool) -> None:
    """One row per network."""
    peers = tuple(PEERS) if has_peers else ()
    header = ["network", "front end", "ops quantized", *STAGES, "codes equal", *peers, "seconds"]
    print()
    print(tabulate([_row(result, peers) for result in results], header, disable_numparse=True))


def _row(result: Result, peers: tuple[str, ...]) -> list[str]:
    front_end = result.network.front_end if result.network is not None else "failed"
    ops = f"{result.ops.quantized}/{result.ops.total}" if result.ops is not None else "-"
    codes = "-" if result.codes is None else ("yes" if not result.codes.different else "NO")
    metrics = [result.cell(row) for row in (*STAGES, *peers)]
    where = len(STAGES)
    seconds = f"{sum(result.seconds.values()):.0f}"
    return [result.name, front_end, ops, *metrics[:where], codes, *metrics[where:], seconds]


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def main(argv: Sequence[str] = ()) -> int:
    """Print the details of each network and the table; 0, or 2 where there is nothing to run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_models", description=__doc__)
    parser.add_argument("--dir", type=Path, help="folder with a loader module per network")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="measure the peers too")
    options = parser.parse_args(list(argv))
    if options.dir is None:
        print("no folder of networks was given: python -m benchmarks.real_models --dir FOLDER")
        return 0
    try:
        known = loader_names(options.dir)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    if unknown := [name for name in options.models or () if name not in known]:
        print(f"no network {', '.join(unknown)} in {options.dir}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    logging.getLogger("profiler").setLevel(logging.ERROR)  # what stays in float is in the table
    results = []
    with importable(options.dir):
        for name in options.models or known:
            results.append(measure(name, options.peers))
            print_details(results[-1], options.peers)
    print_table(results, options.peers)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
