"""check_qat_model: what a prepared model is made of, before anything is calibrated or trained."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import fx, nn

from profiler.errors import ModelError
from profiler.quant.checking.called import called_counts
from profiler.quant.checking.facts import OUTPUT, OpFacts, consumers, describe_observer
from profiler.quant.checking.fusable import fusable_groups
from profiler.quant.checking.graph import rows_of_graph
from profiler.quant.checking.qconfigs import (
    NO_ACTIVATION,
    OutputRow,
    effects_of,
    message_rows,
    messages_of_module,
    output_row,
    weight_rows,
)
from profiler.quant.checking.result import ModelCheck, count_dtypes
from profiler.quant.checking.run import ModelRun, run_model
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.modules import type_name
from profiler.quant.naming import op_name
from profiler.quant.ops.gemm import FakeQuantGemm
from profiler.quant.ops.registry import Family
from profiler.quant.swap import is_converted, leaves

_LOG = logging.getLogger(__name__)
RESULT_FILE, GRAPH_FILE = "model_check_result.txt", "fx_graph.txt"


def check_qat_model(
    model: nn.Module,
    example_inputs: Any = None,
    example_kw_inputs: dict[str, Any] | None = None,
    save_results: bool = False,
    out_dir: str | Path | None = None,
) -> ModelCheck:
    """What could still be fused, how often each module runs, and how each op and weight is really quantized.

    A copy of the model runs once in eval with observers and fake quants off: no statistics, flags, modes or journal
    change, and nothing need be calibrated. Conv and linear ops that could give their output in high precision, as only
    DeQuantStubs read it, are named in a warning.

    Args:
        model: prepared model (eager, fx or recorded), in any state.
        example_inputs: a tensor, a tuple or list of inputs, or a dict by parameter name. Without any, only what needs
            no run is told: configured outputs, weights, what deserves a look about them, and the graph of an fx model.
        example_kw_inputs: inputs by name.
        save_results: write `model_check_result.txt` and `fx_graph.txt`.
        out_dir: folder for the files; the current one by default.

    Raises:
        ModelError: a converted model, or one that cannot be copied.
        ConfigError: inputs that forward does not take.
    """
    if is_converted(model):
        raise ModelError(
            f"{type(model).__name__} is converted; check_qat_model takes a prepared model, for a converted one there "
            "are check_model and check_deploy_device"
        )
    is_given = example_inputs is not None or bool(example_kw_inputs)
    check = _checked(model, run_model(model, example_inputs, example_kw_inputs)) if is_given else _unrun(model)
    if not is_given:
        _LOG.warning("check_qat_model: without example_inputs only what needs no run is told")
    for name in check.missed_high_precision:
        _LOG.warning(
            "check_qat_model: the output of %s is quantized, but only DeQuantStubs read it: give it an out qconfig "
            "(activation None), and its accumulator goes to float without rounding",
            name,
        )
    if save_results:
        _save(check, Path(out_dir or "."))
    _LOG.info("%s", check.text())
    return check


def _checked(model: nn.Module, run: ModelRun) -> ModelCheck:
    calls = list(run.facts.values())
    first = [facts for facts in calls if facts.call == 0]
    return ModelCheck(
        has_run=True,
        fusable=fusable_groups(run.facts),
        called=called_counts(run.model, run.called, run.extra_leaves),
        input_dtypes=count_dtypes((c.type_name, [t.dtype for t in c.inputs]) for c in calls),
        output_dtypes=count_dtypes((c.type_name, [t.dtype for t in c.outputs]) for c in calls),
        outputs=tuple(output_row(facts) for facts in calls),
        weights=tuple(row for facts in first for row in weight_rows(facts.op_name, facts.type_name, facts.module)),
        messages=tuple(message_rows(calls, effects_of(run.model))),
        graph=rows_of_graph(model.graph) if isinstance(model, fx.GraphModule) else tuple(run.graph),
        missed_high_precision=tuple(missed_high_precision(run.facts)),
    )


def _unrun(model: nn.Module) -> ModelCheck:
    """What the modules and the graph tell."""
    ops = {op_name(path): module for _, _, module, path in leaves(model)}
    effects = effects_of(model)
    return ModelCheck(
        has_run=False,
        fusable=(),
        called=(),
        input_dtypes=(),
        output_dtypes=(),
        outputs=tuple(row for name, module in ops.items() for row in _configured(name, module)),
        weights=tuple(row for name, module in ops.items() for row in weight_rows(name, type_name(module), module)),
        messages=tuple(row for name, op in ops.items() for row in messages_of_module(name, op, effects.get(name))),
        graph=rows_of_graph(model.graph) if isinstance(model, fx.GraphModule) else (),
        missed_high_precision=(),
    )


def _configured(name: str, module: nn.Module) -> Iterator[OutputRow]:
    """The row of an op that has a fake quant for its output, or could have one; its input dtypes are not known."""
    fake_quant = getattr(module, OUTPUT, None)
    if isinstance(fake_quant, FakeQuantize):
        axis, observer = str(fake_quant.ch_axis), describe_observer(fake_quant)
        yield OutputRow(name, type_name(module), ("not run",), fake_quant.dtype, axis, observer)
    elif isinstance(module, FakeQuantGemm):
        yield OutputRow(name, type_name(module), ("not run",), "None", NO_ACTIVATION, "")


def missed_high_precision(facts: Mapping[str, OpFacts]) -> Iterator[str]:
    """Weighted ops with a quantized output that only DeQuantStubs read, at each of their calls (HP1)."""
    readers = consumers(facts)
    for name, call in facts.items():
        if not _is_product(call) or call.call > 0 or not call.outputs[0].dtype.startswith("qint"):
            continue
        calls = [n for n, other in facts.items() if other.op_name == name]
        if all(_feeds_only_dequant(facts, readers, n) for n in calls):
            yield name


def _feeds_only_dequant(facts: Mapping[str, OpFacts], readers: Mapping[str, list[str]], name: str) -> bool:
    return bool(readers[name]) and all(
        _is(facts[reader], "dequant_stub")
        or ((facts[reader].is_pass_through or _is(facts[reader], "shape", "dropout"))
            and _feeds_only_dequant(facts, readers, reader))
        for reader in readers[name]
    )  # fmt: skip


def _is_product(facts: OpFacts) -> bool:
    """Whether an op is a conv, a linear or a matmul."""
    is_weighted = facts.spec is not None and facts.spec.family is Family.GEMM
    return (is_weighted and not _is(facts, "batch_norm")) or _is(facts, "matmul")


def _is(facts: OpFacts, *operators: str) -> bool:
    return facts.spec is not None and facts.spec.name in operators


def _save(check: ModelCheck, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT_FILE).write_text(check.text(), "utf-8")
    (folder / GRAPH_FILE).write_text(check.graph_text(), "utf-8")
    _LOG.info("check_qat_model: wrote %s and %s in %s", RESULT_FILE, GRAPH_FILE, folder)
