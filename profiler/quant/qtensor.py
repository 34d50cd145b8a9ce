"""QTensor: a tensor that knows its scale; float values before conversion, integer codes after it."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from profiler.errors import UnsupportedOpError
from profiler.quant.affine import QInfo, dequantize, qinfo, quantize
from profiler.quant.naming import NOT_OPS, canonical_function_name

Handler = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
_HANDLERS: dict[str, Handler] = {}
_MODULE_NAMES: list[Callable[[], str]] = []
_STANDS_FOR_REAL = "quant_stands_for_real"
_OWN_FRAMES = ("/torch/", "/profiler/quant/", "/profiler/capture/")
# Reads that hand numbers to Python or numpy: they get real values, in a converted model too.
_VALUE_READS = frozenset(
    "item tolist bool int index complex format is_nonzero numpy array contains allclose equal".split()
)


class QTensor(Tensor):
    """A quantized value.

    In calib and qat models it holds real values in float (on the grid of `scale` while fake quant is on); in converted
    models it holds integer codes. `scale` is a 0-d tensor, or `[C]` along `ch_axis`; `zero_point` is 0. `is_rounded`
    says whether fake quant was on where the values were made. With `has_off` the least int16 code stands for an element
    that an additive mask switched off (see masks.py).
    """

    scale: Tensor
    qdtype: str
    ch_axis: int
    is_rounded: bool
    has_off = False

    @staticmethod
    def wrap(data: Tensor, scale: Tensor, qdtype: str, ch_axis: int = -1, is_rounded: bool = True) -> QTensor:
        """Attach a scale to float values or integer codes; shares memory with `data`."""
        wrapped = data.as_subclass(QTensor)
        wrapped.scale, wrapped.qdtype, wrapped.ch_axis, wrapped.is_rounded = scale, qdtype, ch_axis, is_rounded
        return wrapped

    @property
    def plain(self) -> Tensor:
        """The tensor inside: float values, or integer codes of a converted model."""
        return self.as_subclass(Tensor)

    @property
    def holds_codes(self) -> bool:
        """True in a converted model."""
        return not self.plain.is_floating_point()

    @property
    def info(self) -> QInfo:
        return qinfo(self.qdtype)

    def like(self, data: Tensor) -> QTensor:
        """The same scale on other data."""
        result = QTensor.wrap(data, self.scale, self.qdtype, self.ch_axis, self.is_rounded)
        result.has_off = self.has_off
        return result

    def q_scale(self) -> Tensor:  # type: ignore[override]
        """Scale: 0-d, or `[C]` for a per-channel tensor."""
        return self.scale

    def q_zero_point(self) -> Tensor:  # type: ignore[override]
        """Always 0: quantization is symmetric."""
        return torch.zeros_like(self.scale, dtype=torch.int64)

    def q_per_channel_axis(self) -> int:
        """Axis of the scale, -1 for per tensor."""
        return self.ch_axis

    def dequantize(self) -> Tensor:
        """Real values as a plain float tensor; those of codes are contiguous."""
        return dequantize(self.plain.contiguous(), self.scale, self.ch_axis) if self.holds_codes else self.plain

    def int_repr(self) -> Tensor:
        """Integer codes as a plain tensor."""
        return self.plain if self.holds_codes else quantize(self.plain, self.scale, self.info, self.ch_axis)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"QTensor({self.plain!r}, scale={self.scale!r}, dtype={self.qdtype}, ch_axis={self.ch_axis})"

    def __deepcopy__(self, memo: dict[int, Any]) -> QTensor:
        return self.like(self.plain.detach().clone())

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Send functions on QTensors to their handlers; facts (`shape`) come from the data, numbers are real."""
        name = canonical_function_name(func)
        handler = _HANDLERS.get(name)
        if handler is not None:
            return handler(func, args, kwargs or {})
        if name in _VALUE_READS:
            if name == "index" and args[0].holds_codes:  # torch.tensor([x[0], 1.0]) would read the code
                raise UnsupportedOpError(
                    f"a quantized value is used as an index or copied into a list of numbers at {user_line()}; "
                    "call .item() on it, or use torch.stack"
                )
            return func(*to_float(args), **to_float(kwargs or {}))
        if name in NOT_OPS or name == "as_subclass":
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise UnsupportedOpError(
            f"function {name} is not implemented for QTensor{in_module()}, called at {user_line()}; put a DeQuantStub "
            "before it, or set qconfig = None on the part that should stay float"
        )


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Register the handler of torch functions (canonical names) that get a QTensor."""

    def register(handler: Handler) -> Handler:
        for name in names:
            if name in _HANDLERS:
                raise UnsupportedOpError(f"function {name} already has a QTensor handler")
            _HANDLERS[name] = handler
        return handler

    return register


def has_handler(name: str) -> bool:
    """Whether a function (canonical name) is defined on quantized values."""
    return name in _HANDLERS


def name_modules_with(running_module: Callable[[], str]) -> None:
    """Let errors name the module that `running_module()` gives ("" where none runs)."""
    _MODULE_NAMES.append(running_module)


def in_module() -> str:
    """` in module <path>` of the prepared model that runs, or "" where nobody knows."""
    name = next((name for running_module in _MODULE_NAMES if (name := running_module())), "")
    return f" in module {name}" if name else ""


def to_plain(value: Any) -> Any:
    """Replace every QTensor in a nest of tuples, lists and dicts by the tensor inside."""
    if isinstance(value, QTensor):
        return value.plain
    if isinstance(value, Tensor):
        return value
    return tree_map(lambda v: v.plain if isinstance(v, QTensor) else v, value)


def to_float(value: Any) -> Any:
    """Replace every QTensor in a nest by its real values."""
    return tree_map(lambda v: v.dequantize() if isinstance(v, QTensor) else v, value)


def stand_for_real(codes: Tensor) -> Tensor:
    """Mark plain weight codes: their facts, as a model's own code reads them, are those of real values."""
    setattr(codes, _STANDS_FOR_REAL, True)
    return codes


def has_real_facts(x: Any) -> bool:
    """Whether `real_fact` may answer otherwise than the memory: quantized values, and marked weight codes."""
    if isinstance(x, QTensor):
        return True
    return isinstance(x, Tensor) and x.dtype is torch.int8 and getattr(x, _STANDS_FOR_REAL, False)


def real_fact(x: Any, name: str) -> Any:
    """`x.dtype` or `x.is_floating_point()` as a model's own code means it: of real values, where x holds codes too.

    Not in `__torch_function__`: torch.compile compares these facts with those of the memory.
    """
    holds_codes = x.holds_codes if isinstance(x, QTensor) else has_real_facts(x)
    if name == "dtype":
        return torch.float32 if holds_codes else x.dtype
    return holds_codes or x.is_floating_point()


def first_qtensor(value: Any) -> QTensor | None:
    """The first QTensor in a nest of tuples, lists and dicts, or None."""
    if isinstance(value, QTensor):
        return value
    if isinstance(value, (tuple, list)):
        return next((q for item in value if (q := first_qtensor(item)) is not None), None)
    if isinstance(value, dict):
        return first_qtensor(list(value.values()))
    return None


def user_line() -> str:
    """`file:line (text)` of the user's code that runs now; in a traced fx graph the line that the node came from."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        filename = frame.f_code.co_filename.replace("\\", "/")
        if filename.startswith("<eval_with_key>"):
            return _line_of_node(frame)
        if not any(part in filename for part in _OWN_FRAMES):
            return f"{filename}:{frame.f_lineno} ({linecache.getline(filename, frame.f_lineno).strip()})"
        frame = frame.f_back
    return "an unknown line"


def _line_of_node(frame: FrameType) -> str:
    graph = getattr(frame.f_locals.get("self"), "graph", None)
    text = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    name = text.partition("=")[0].strip()
    nodes = () if graph is None else graph.nodes
    found = next((str(node.meta["source"]) for node in nodes if node.name == name and "source" in node.meta), "")
    return found or f"generated code: {text.partition(';')[0].strip()}"
