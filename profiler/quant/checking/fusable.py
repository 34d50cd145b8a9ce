"""Weighted ops followed by a batch norm or ReLU that could be part of them, and why they are not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from profiler.quant.checking.facts import OpFacts, consumers
from profiler.quant.ops.batch_norm import BatchNorm
from profiler.quant.ops.gemm import Gemm

_NORMS = (BatchNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_WEIGHTED = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
)  # fmt: skip


@dataclass(frozen=True)
class FusableGroup:
    """Ops that could be one: names and types in order, which of them are shared, and why they are not one."""

    names: tuple[str, ...]
    types: tuple[str, ...]
    shared: tuple[bool, ...]
    cause: str


def fusable_groups(facts: Mapping[str, OpFacts]) -> tuple[FusableGroup, ...]:
    """The groups of one forward, in order; no op is in two."""
    groups, taken = [], set()
    readers = consumers(facts)
    for name, call in facts.items():
        module = call.module
        if not isinstance(module, (Gemm, *_WEIGHTED)) or name in taken:
            continue
        if isinstance(module, Gemm) and (module.epilogue.activation or "BatchNorm" in module.base_name):
            continue
        chain = [name, *_following(facts, readers, name)]
        if len(chain) > 1:
            taken.update(chain)
            types = tuple(facts[n].type_name for n in chain)
            shared = tuple(is_shared(facts, n) for n in chain)
            groups.append(FusableGroup(tuple(chain), types, shared, _cause(facts, readers, chain)))
    return tuple(groups)


def is_shared(facts: Mapping[str, OpFacts], name: str) -> bool:
    """Whether the op of a call is called more than once."""
    return f"{facts[name].op_name}(1)" in facts


def _following(facts: Mapping[str, OpFacts], readers: Mapping[str, list[str]], name: str) -> list[str]:
    """The batch norm and ReLU behind a weighted op, by any of its consumers."""
    chain: list[str] = []
    for wanted in (_is_norm, _is_relu):
        current = chain[-1] if chain else name
        found = next((n for n in _real_readers(facts, readers, current) if wanted(facts[n])), None)
        if found is not None:
            chain.append(found)
    return chain


def _real_readers(facts: Mapping[str, OpFacts], readers: Mapping[str, list[str]], name: str) -> Iterator[str]:
    for reader in readers.get(name, []):
        if isinstance(facts[reader].module, nn.Identity):
            yield from _real_readers(facts, readers, reader)
        else:
            yield reader


def _cause(facts: Mapping[str, OpFacts], readers: Mapping[str, list[str]], chain: list[str]) -> str:
    """Why a group is not one op."""
    shared = [n for n in chain if is_shared(facts, n)]
    if shared:
        return f"{shared[0]} is shared: it is called more than once"
    for name in chain[:-1]:
        found = list(_real_readers(facts, readers, name))
        if len(found) > 1:
            others = ", ".join(r for r in found if r not in chain)
            return f"second consumer: the output of {name} is also read by {others}"
    called_as_function = [n for n in chain[1:] if _is_function_call(facts[n])]
    if called_as_function:
        return f"{called_as_function[0]} is called as a function: eager fusion needs a module"
    return "not listed for fusion"


def _is_function_call(facts: OpFacts) -> bool:
    """Whether the user's code calls a torch function here: plain, or through the module generated in its place."""
    return facts.module is None or facts.base_name.startswith("FunctionOp")


def _is_norm(facts: OpFacts) -> bool:
    module = facts.module
    return isinstance(module, _NORMS) or (isinstance(module, Gemm) and module.base_name.startswith("BatchNorm"))


def _is_relu(facts: OpFacts) -> bool:
    return facts.spec is not None and facts.spec.name in ("relu", "relu6")
