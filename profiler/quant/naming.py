"""Names of ops: the same in all stages and in all front ends, so that they can join stages.

`<fqn>` is a leaf module; `<fqn>.<function>_<k>` the k-th call of a function in one run of a module's forward. Inside a
named block (`Tracer.dynamic_block`, or code under `wrap`) it is `<fqn>.<block>.<function>_<k>`, and k starts at 0 each
time the block is entered: however often a loop body runs, a call site has one name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

# Attribute name of an op inside the graph that was made around it alone: the graph stands at the op's own path.
SELF_NAME = "_op"
_GENERATED = re.compile(r"^_generated_(?:(?P<block>\w+)__)?(?P<function>(?:(?!__)\w)+)_(?P<k>\d+)$")
_BLOCKS = "__"  # between the names of nested blocks and the function, in an attribute name
_WRAPPED = "_wrapped_"

# Reads of facts about a tensor, and bookkeeping: they compute no activation and are never ops.
NOT_OPS = frozenset(
    "size dim shape ndim numel nelement device dtype layout stride storage_offset is_contiguous "
    "is_floating_point is_complex "
    "is_cuda is_quantized is_sparse is_leaf is_meta is_mkldnn is_nested is_inference requires_grad grad grad_fn "
    "data_ptr "
    "len bool int float_value index item tolist repr str format hash dir reduce_ex deepcopy set delete iter "
    "element_size itemsize nbytes names register_hook retain_grad backward set_grad_enabled get_device ndimension "
    "untyped_storage storage output_nr version is_same_size is_nonzero is_signed result_type is_tensor "
    "has_names numpy array contains retains_grad is_view backward_hooks base is_shared is_pinned can_cast "
    "promote_types is_conj is_neg is_grad_enabled allclose equal manual_seed".split()
)
_DUNDER_ALIASES = {
    "truediv": "div",
    "iadd": "add",
    "radd": "add",
    "isub": "sub",
    "rsub": "sub",
    "imul": "mul",
    "rmul": "mul",
    "idiv": "div",
    "itruediv": "div",
    "rtruediv": "div",
    "rdiv": "div",
    "rmatmul": "matmul",
    "imatmul": "matmul",
    "rpow": "pow",
    "ipow": "pow",
    "concat": "cat",
    "concatenate": "cat",
    "multiply": "mul",
    "divide": "div",
    "subtract": "sub",
    "true_divide": "div",
}


_REFLECTED = frozenset("rsub rtruediv rdiv rpow rmatmul".split())


def is_reflected(func: Callable[..., Any]) -> bool:
    """Whether a function takes its operands in the reverse order of its canonical one: torch.rsub, `x.__rpow__`."""
    return str(getattr(func, "__name__", "")).strip("_") in _REFLECTED


def canonical_function_name(func: Callable[..., Any] | str) -> str:
    """One name for all spellings of a torch function: `+`, `x.add`, `x.add_`, `torch.add` are `add`.

    Args:
        func: a torch function, operator, tensor method or property getter as seen by `__torch_function__`, or its
            name (an fx call_method target).
    """
    name = func if isinstance(func, str) else getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__", "__delete__") and not isinstance(func, str):
        descriptor = getattr(func, "__self__", None)
        name = getattr(descriptor, "__name__", "property") if name == "__get__" else "set"
    if name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
    name = name.strip("_") or name
    return _DUNDER_ALIASES.get(name, name)


def join(parent: str, name: str) -> str:
    """Dotted path of a child; the root has the empty name."""
    return f"{parent}.{name}" if parent else name


def generated_name(function: str, k: int, block: str = "") -> str:
    """Attribute name of the module that stands in a function's place; `block` is the named block it is called in."""
    return f"_generated_{block}{_BLOCKS if block else ''}{function}_{k}"


def parse_generated(name: str) -> tuple[str, int] | None:
    """Function and call number of a generated module's attribute name, or None for any other name."""
    match = _GENERATED.match(name)
    return (match["function"], int(match["k"])) if match else None


def block_of_generated(name: str) -> str:
    """The named block that a generated module's attribute name holds, or ""."""
    match = _GENERATED.match(name)
    return (match["block"] or "") if match else ""


def join_blocks(outer: str, inner: str) -> str:
    """One name for a block inside another one."""
    return f"{outer}{_BLOCKS}{inner}" if outer else inner


def block_name(text: str) -> str:
    """A text such as a function's name as the name of a block: an identifier without double underscores."""
    return re.sub(r"_{2,}", "_", re.sub(r"\W", "_", text)).strip("_") or "block"


def wrapped_name(name: str) -> str:
    """Attribute name of the module that stands for wrapped code in a traced graph."""
    return f"{_WRAPPED}{block_name(name)}"


def op_name(fqn: str) -> str:
    """Op name of a module path: `block._generated_add_0` is the op `block.add_0`, most other paths are themselves.

    `block._wrapped_post.conv` is `block.conv`; functions that the wrapped code calls keep its name, as
    `block.post.add_0`; so do those in a named block: `block._generated_Body__add_0` is `block.Body.add_0`.
    """
    parent, _, last = fqn.rpartition(".")
    if last == SELF_NAME and parent:
        return parent
    match = _GENERATED.match(last)
    if match is None and _WRAPPED not in fqn:
        return fqn
    owners = parent.split(".") if parent else []
    kept = [p for p in owners[:-1] if not p.startswith(_WRAPPED)]
    if owners and (match is not None or not owners[-1].startswith(_WRAPPED)):
        kept.append(owners[-1].removeprefix(_WRAPPED))
    blocks = match["block"].split(_BLOCKS) if match is not None and match["block"] else []
    own = last.removeprefix(_WRAPPED) if match is None else f"{match['function']}_{match['k']}"
    return ".".join([*kept, *blocks, own])


def call_name(name: str, call: int) -> str:
    """Name of one call of an op: bare for the first, `name(1)` for the second."""
    return name if call == 0 else f"{name}({call})"
