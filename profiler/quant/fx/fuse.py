"""Finds and fuses conv-bn-add-relu groups in a traced graph."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from enum import Enum
from typing import Any

from torch import fx, nn

from profiler.quant.eager.fuse import activation_name, fused_class, is_norm_of
from profiler.quant.fx.wrapped import KEPT
from profiler.quant.modules import Identity
from profiler.quant.naming import op_name
from profiler.quant.ops.epilogue import Epilogue
from profiler.quant.ops.float_functional import FloatFunctional
from profiler.quant.ops.functional import FunctionOp
from profiler.quant.ops.fusing import fuse_gemm
from profiler.quant.qconfig import QConfig


class FuseMode(Enum):
    """What `fuse_fx` may fuse."""

    BNAddReLU = "bn, add and relu"
    NoFuse = "nothing"


def fuse_graph(root: nn.Module, graph: fx.Graph) -> list[tuple[str, ...]]:
    """Fuse every group of the graph in place, longest first.

    A group is a conv (transposed or not) or linear, then a batch norm, an add, a ReLU or ReLU6, each optional. Inner
    results must have one consumer and the modules one call each; nn.Identity between them is passed over.

    Returns:
        The op names of each fused group.
    """
    calls = _calls(graph)
    groups = []
    done: set[str] = set()
    for node in list(graph.nodes):
        if str(node.target) not in done and _may_begin(node, calls):
            done.add(str(node.target))
            chains = _chains(root, graph, node, calls)
            if chains:
                groups.append(_fuse(root, graph, chains))
    graph.lint()
    return groups


def fusion_groups(root: nn.Module, graph: fx.Graph) -> list[tuple[str, list[fx.Node]]]:
    """What `fuse_graph` will fuse: path where the fused op will be, and the nodes of the group in order."""
    calls = _calls(graph)
    groups: list[tuple[str, list[fx.Node]]] = []
    taken: set[fx.Node] = set()
    for node in graph.nodes:
        chain = _chain(root, node, calls) if _may_begin(node, calls) else []
        if len(chain) > 1 and taken.isdisjoint(chain):
            add = next((n for n in chain if _operands(_module(root, n), n)), chain[0])
            groups.append((str(add.target), chain))
            taken.update(chain)
    return groups


def _calls(graph: fx.Graph) -> Counter[tuple[str, Any]]:
    """How often each module is called; a graph may hold several recorded runs of one model."""
    return Counter(_call_key(n) for n in graph.nodes if n.op == "call_module")


def _call_key(node: fx.Node) -> tuple[str, Any]:
    return str(node.target), node.meta.get("record")


def _may_begin(node: fx.Node, calls: Counter[tuple[str, Any]]) -> bool:
    return node.op == "call_module" and calls[_call_key(node)] == 1 and len(node.args) + len(node.kwargs) == 1


def _chains(root: nn.Module, graph: fx.Graph, start: fx.Node, calls: Counter[tuple[str, Any]]) -> list[list[fx.Node]]:
    """The group that begins at a module, in each recorded run that calls it; nothing where the runs differ in it."""
    starts = [n for n in graph.nodes if n.op == "call_module" and n.target == start.target]
    chains = [_chain(root, node, calls) if _may_begin(node, calls) else [node] for node in starts]
    targets = [str(node.target) for node in chains[0]] if chains else []  # none where it was fused away before
    if len(targets) < 2 or any([str(node.target) for node in chain] != targets for chain in chains):
        return []
    ops = {target for target in targets if not isinstance(root.get_submodule(target), nn.Identity)}
    is_called_elsewhere = any(sum(calls[key] for key in calls if key[0] == target) != len(chains) for target in ops)
    return [] if is_called_elsewhere else chains


def _chain(root: nn.Module, start: fx.Node, calls: Counter[tuple[str, Any]]) -> list[fx.Node]:
    """Nodes of the longest group that begins at a weighted op."""
    cls = fused_class(_module(root, start))
    chain = [start]
    if cls is None or _stays_float(_module(root, start)):
        return chain
    for kind in ("norm", "add", "activation"):
        skipped, following = _next(root, chain[-1])
        if following is None or calls[_call_key(following)] != 1:
            break
        if chain[-1].meta.get("shares_memory") or chain[-1].meta.get("read_unseen"):
            break
        module = _module(root, following)
        if KEPT in module.__dict__:
            break
        inner = [chain[-1], *skipped][-1]
        matches = {
            "norm": is_norm_of(module, cls) and following.args[:1] == (inner,),
            "add": _is_add(module, following) and _other_is_ready(following, inner),
            "activation": bool(_activation(module)),
        }[kind]
        if matches:
            chain += [*skipped, following]
    return chain


def _stays_float(module: nn.Module) -> bool:
    is_unconfigured = "qconfig" in module.__dict__ and module.__dict__["qconfig"] is None
    return is_unconfigured or KEPT in module.__dict__


def _next(root: nn.Module, node: fx.Node) -> tuple[list[fx.Node], fx.Node | None]:
    """The identities behind a node, and the one op that reads the result; None where that is not one module call."""
    skipped: list[fx.Node] = []
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.op != "call_module":
            break
        if not isinstance(_module(root, node), nn.Identity):
            return skipped, node
        skipped.append(node)
    return skipped, None


def _is_add(module: nn.Module, node: fx.Node) -> bool:
    if len(node.kwargs) or len(_operands(module, node)) != 2:
        return False
    operands = _operands(module, node)
    return all(_is_activation(o) for o in operands) and operands[0] is not operands[1]


def _is_activation(operand: Any) -> bool:
    """Whether an operand of an add is computed from activations: no constant, nor what is made from shapes alone."""
    if not isinstance(operand, fx.Node) or operand.op == "get_attr" or operand.meta.get("constant"):
        return False
    return operand.op != "call_function" or operand.meta.get("function") in ("getitem", "getattr", "values")


def _operands(module: nn.Module, node: fx.Node) -> tuple[Any, ...]:
    if isinstance(module, FloatFunctional):
        return node.args[1:] if node.args and node.args[0] == "add" else ()
    return node.args if isinstance(module, FunctionOp) and module.function == "add" else ()


def _other_is_ready(add: fx.Node, product: fx.Node) -> bool:
    """The other operand of the add must not itself be a conv that fuses later: the last one computed takes the add."""
    others = [n for n in add.all_input_nodes if n is not product]
    order = {node: i for i, node in enumerate(add.graph.nodes)}
    return all(order[o] < order[product] or o.op != "call_module" or len(o.users) > 1 for o in others)


def _activation(module: nn.Module) -> str:
    if isinstance(module, FunctionOp):
        return module.function if module.function in ("relu", "relu6") else ""
    return activation_name(module)


def _fuse(root: nn.Module, graph: fx.Graph, chains: list[list[fx.Node]]) -> tuple[str, ...]:
    """Put the fused module at the add (or at the conv), Identity elsewhere, and one node at the end of each group."""
    chain = chains[0]
    modules = [_module(root, node) for node in chain]
    add = next((i for i, (n, m) in enumerate(zip(chain, modules, strict=True)) if _operands(m, n)), None)
    cls = fused_class(modules[0])
    assert cls is not None
    norm = next((m for m in modules if is_norm_of(m, cls)), None)
    ops = [node for node, module in zip(chain, modules, strict=True) if not isinstance(module, nn.Identity)]
    names = tuple(op_name(str(node.target)) for node in ops)
    fused = fuse_gemm(cls, modules[0], norm, Epilogue(add is not None, _activation(modules[-1])), names)
    home = str(chain[add or 0].target)
    for node in ops:
        _set_module(root, str(node.target), Identity())
    _set_module(root, home, fused)
    if add is not None:
        fused.__dict__["qconfig"] = _qconfig_of_sum(root, modules[0], _module_qconfig(modules[add]))
    for calls in chains:
        _replace_by_one(graph, calls, add, home)
    return names


def _replace_by_one(graph: fx.Graph, chain: list[fx.Node], add: int | None, home: str) -> None:
    product = chain[add - 1] if add is not None else None
    others = [n for n in chain[add].all_input_nodes if n is not product] if add is not None else []
    with graph.inserting_after(chain[-1]):
        new = graph.call_module(home, (chain[0].args[0] if chain[0].args else chain[0].all_input_nodes[0], *others))
    new.meta.update(chain[-1].meta)
    new.meta["scope"] = chain[add or 0].meta.get("scope", "")
    if "record" in new.meta:
        new.meta.update(path=home, deferred=str(chain[0].target) if add is not None else "")
    chain[-1].replace_all_uses_with(new)
    for node in reversed(chain):
        graph.erase_node(node)


def _qconfig_of_sum(root: nn.Module, product: nn.Module, of_add: Any) -> Any:
    """Qconfig of a product with an add: the product's own; where only the add was given one, that add's output."""
    own = _module_qconfig(product)
    is_default = own is not None and own == _module_qconfig(root)
    if is_default and isinstance(of_add, QConfig) and of_add.activation is not None:
        return replace(own, activation=of_add.activation)
    return own


def _module_qconfig(module: nn.Module) -> Any:
    return module.__dict__.get("qconfig")


def _module(root: nn.Module, node: fx.Node) -> nn.Module:
    return root.get_submodule(str(node.target))


def _set_module(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    module.train(root.get_submodule(path).training)
    setattr(root.get_submodule(parent), name, module)
