"""Turns the functions of a traced graph into modules, so that each can carry a quantizer and a name."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import fx, nn

from profiler.quant.fx.in_place import is_in_place
from profiler.quant.fx.weighted_functions import require_same_weight, weighted_module
from profiler.quant.naming import NOT_OPS, generated_name, join
from profiler.quant.ops.functional import FunctionOp
from profiler.quant.ops.registry import get_spec

# Results that are no tensors: an index into them is plain Python.
_MAKES_TUPLE = frozenset(
    "size shape chunk split unbind topk sort cummax cummin kthvalue split_with_sizes tensor_split meshgrid "
    "aminmax".split()
)
_MAKES_TUPLE_OVER_DIM = frozenset("max min median".split())
_PYTHON = frozenset("getattr getitem setitem len int float bool not is".split())
_COMPARISONS = frozenset("eq ne lt le gt ge".split())
_TUPLE_MODULES = (nn.RNNBase, nn.LSTMCell, nn.MultiheadAttention)


def functions_to_modules(root: nn.Module, graph: fx.Graph) -> None:
    """Replace function and method nodes on tensors by calls of `_generated_<function>_<k>` modules of `root`.

    The modules are registered in the module whose code made the call; a module called twice shares them. In-place
    functions become plain ones: later users read the result, as do those of an in-place module's input.
    """
    counts: Counter[tuple[int, str]] = Counter()
    for node in list(graph.nodes):
        is_recorded = "record" in node.meta  # later readers are known there
        is_module = node.op == "call_module" and not is_recorded
        if is_module and getattr(root.get_submodule(str(node.target)), "inplace", False):
            _redirect_later_users(node.all_input_nodes[0], node, graph)
        if node.op not in ("call_function", "call_method") or not _is_op(root, node):
            continue
        run = (node.meta["run"], node.meta["function"])
        k = node.meta["k"] if is_recorded else counts[run] + node.meta["skipped"]
        own = generated_name(node.meta["function"], k, node.meta.get("block", ""))
        path = node.meta["path"] if is_recorded else join(node.meta["scope"], own)
        counts[run] += 1
        func, args = _in_order(node)
        kwargs, weighted = node.kwargs, weighted_module(root, node)
        if weighted is not None:
            args, kwargs = (node.args[0] if node.args else node.kwargs["input"],), {}
        _add_module(root, path, weighted or FunctionOp(node.meta["function"], func))
        with graph.inserting_before(node):
            new = graph.call_module(path, args, kwargs)
        new.meta.update(node.meta)
        node.replace_all_uses_with(new)
        if not is_recorded and is_in_place(node) and node.args and isinstance(node.args[0], fx.Node):
            _redirect_later_users(node.args[0], new, graph)
        graph.erase_node(node)


def _in_order(node: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    """The function that a node calls and its arguments; torch.rsub becomes the subtraction that it is."""
    if node.target is torch.rsub and len(node.args) > 1:
        return get_spec("sub").float_fn, (node.args[1], node.args[0], *node.args[2:])
    return getattr(torch.Tensor, str(node.target)) if node.op == "call_method" else node.target, node.args


def _is_op(root: nn.Module, node: fx.Node) -> bool:
    name = node.meta["function"]
    sources = node.all_input_nodes
    if name in NOT_OPS or not sources:
        return False
    if node.op == "call_method" and not hasattr(torch.Tensor, str(node.target)):  # batch.get("x") on a dict
        return False
    if "kind" in node.meta:
        # an operator or index on a tuple of tensors is plain Python; a function such as torch.cat on it is not
        if getattr(node.target, "__module__", "") == "_operator" or node.target is getattr:
            operands = node.args[:1] if name == "getitem" else node.args
            return any(isinstance(a, fx.Node) and a.meta["kind"] in ("float", "int") for a in operands)
        return any(source.meta["kind"] != "other" for source in sources)
    if node.target is getattr and _makes_tuple(root, node.args[0]):  # x.max(1).values
        return False
    if (name in _PYTHON and name != "getitem") or all(_is_python_value(root, a) for a in sources):
        return False
    return name != "getitem" or not _makes_tuple(root, node.args[0])


def _is_python_value(root: nn.Module, node: fx.Node) -> bool:
    """Whether a node is a number, a size or the like: a read of facts, or arithmetic on such reads."""
    if node.op in ("call_function", "call_method"):
        name = node.meta.get("function", "")
        if name in NOT_OPS:
            return True
        return name in {*_PYTHON, *_COMPARISONS, "add", "sub", "mul", "floordiv", "div", "mod", "neg"} and all(
            _is_python_value(root, a) for a in node.all_input_nodes
        )
    return False


def _makes_tuple(root: nn.Module, source: Any) -> bool:
    if not isinstance(source, fx.Node):
        return True
    if _is_python_value(root, source):
        return True
    if source.op == "call_module":
        module = root.get_submodule(str(source.target))
        if isinstance(module, FunctionOp):
            return _gives_tuple(source, module.function)
        return isinstance(module, _TUPLE_MODULES)
    if source.meta.get("function") == "getitem" and source.args[1] == 1:  # (h, c) in (y, (h, c))
        owner: Any = source.args[0]
        is_module = isinstance(owner, fx.Node) and owner.op == "call_module"
        return is_module and isinstance(root.get_submodule(str(owner.target)), nn.LSTM)
    return _gives_tuple(source, str(source.meta.get("function")))


def _gives_tuple(node: fx.Node, function: str) -> bool:
    has_dim = (len(node.args) > 1 and isinstance(node.args[1], int)) or bool({"dim", "axis"} & node.kwargs.keys())
    return function in _MAKES_TUPLE or (function in _MAKES_TUPLE_OVER_DIM and has_dim)


def _redirect_later_users(old: fx.Node, new: fx.Node, graph: fx.Graph) -> None:
    order = {node: i for i, node in enumerate(graph.nodes)}
    for user in list(old.users):
        if order[user] > order[new]:
            user.replace_input_with(old, new)


def _add_module(root: nn.Module, path: str, module: nn.Module) -> None:
    parent_path, _, name = path.rpartition(".")
    parent = root.get_submodule(parent_path)
    if name not in parent._modules:
        parent.add_module(name, module)
        module.train(parent.training)
    elif not isinstance(module, FunctionOp):
        require_same_weight(parent.get_submodule(name), module, path)
