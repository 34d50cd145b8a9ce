"""Functions as modules: the fake-quant and integer forms of ops without weights."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from profiler.errors import NotCalibratedError, UnsupportedOpError
from profiler.quant.affine import QInfo
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.modules import QuantOp, adopt, make_activation, quantized_output, saturated_output
from profiler.quant.ops.constants import (
    constants_from_keys,
    constants_to_scales,
    is_number_or_empty,
    is_tracing,
    with_fake_quant_constants,
    with_integer_constants,
)
from profiler.quant.ops.float_functional import FloatFunctional, spec_of_method
from profiler.quant.ops.registry import OpSpec, get_spec, spec_of_class, spec_of_function, spec_of_module
from profiler.quant.qconfig import QConfig
from profiler.quant.qtensor import QTensor, first_qtensor, to_float, to_plain, user_line
from profiler.quant.tracing import not_traced

_NUMPY_NAMES = {"axis": "dim", "keepdims": "keepdim"}


@dataclass(frozen=True)
class OutputQuant:
    """Scale and code range that an integer function writes its codes in.

    `cache` belongs to one op of one converted model: what an integer function computes from scales alone (a table) is
    kept there under a key that holds those scales.
    """

    scale: Tensor
    info: QInfo
    cache: dict[Any, Any] = field(default_factory=dict, compare=False)

    def wrap(self, codes: Tensor) -> QTensor:
        """Codes with this scale."""
        return QTensor.wrap(codes, self.scale, self.info.name)


def run_fake_quant(spec: OpSpec, args: Any, kwargs: dict[str, Any], fake_quant: FakeQuantize | None) -> Any:
    """The float function on real values, its output fake-quantized; outside the stubs it stays float.

    Raises:
        UnsupportedOpError: some tensor operands are quantized and others are not.
    """
    if spec.float_fn is None:
        raise UnsupportedOpError(f"operator {spec.name} has no function form")
    kwargs = _torch_names(kwargs)
    if fake_quant is None or first_qtensor([args, kwargs]) is None:
        return spec.float_fn(*to_plain(args), **to_plain(kwargs))
    if keeps_scale(spec, args, kwargs):
        return spec.float_fn(*args, **kwargs)
    _require_one_kind(spec, args, kwargs, spec.name)
    y = spec.float_fn(*to_plain(args), **to_plain(kwargs))
    if spec.fake_quant_output is not None:
        return spec.fake_quant_output(fake_quant, y, *args, **kwargs)
    return saturated_output(y, fake_quant) if spec.saturates else quantized_output(y, fake_quant)


def run_integer(spec: OpSpec, args: Any, kwargs: dict[str, Any], out: OutputQuant | None, where: str) -> Any:
    """The integer function on codes; in float where nothing is quantized or the output has high precision.

    Raises:
        UnsupportedOpError: some tensor operands are quantized and others are not.
    """
    if spec.float_fn is None or spec.integer_fn is None:
        raise UnsupportedOpError(f"operator {spec.name} has no integer form")
    kwargs = _torch_names(kwargs)
    if out is None or first_qtensor([args, kwargs]) is None:
        has_only_codes = all(isinstance(t, QTensor) for t in tensors_in([args, kwargs]))
        if spec.high_precision_fn is not None and has_only_codes:
            return spec.high_precision_fn(*args, **kwargs)
        return spec.float_fn(*to_float(args), **to_float(kwargs))
    if keeps_scale(spec, args, kwargs):
        return spec.float_fn(*args, **kwargs)
    if not is_tracing() and out.scale.numel() == 0:
        raise NotCalibratedError(
            f"{where}: this op was converted without a scale, as the checkpoint held none, and now gets "
            f"quantized values; "
            "calibrate with data that reaches it, then convert again"
        )
    _require_one_kind(spec, args, kwargs, where)
    return spec.integer_fn(out, *args, **kwargs)


def keeps_scale(spec: OpSpec, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether this call of an operator keeps its operand's scale, so that it needs none of its own."""
    return spec.keeps_scale is not None and spec.keeps_scale(args, kwargs)


def in_place(run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a function; with `inplace=True` its result also overwrites the quantized value it was called on."""
    if not (kwargs.get("inplace") and args and isinstance(args[0], QTensor)):
        return run(*args)
    target = args[0]
    with torch._C.DisableTorchFunction():
        kept = target.plain.clone()  # autograd keeps what the function got
    result = run(target.like(kept), *args[1:])
    overwrite(target, result)
    return result


def overwrite(target: QTensor, result: Any) -> bool:
    """Give a quantized value the values and scale of a result; False where shape or dtype do not fit."""
    if not isinstance(result, QTensor) or not _fits(result, target):
        return False
    with torch._C.DisableTorchFunction():  # an op of ours, not of the model: nobody who follows the model sees it
        target.plain.copy_(result.plain)
    target.scale, target.qdtype, target.ch_axis = result.scale, result.qdtype, result.ch_axis
    target.is_rounded, target.has_off = result.is_rounded, result.has_off
    return True


@not_traced
def _fits(result: QTensor, target: QTensor) -> bool:
    return (result.plain.dtype, result.shape) == (target.plain.dtype, target.shape)


def _torch_names(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments by torch's own names: it also takes numpy's, as in `x.mean(axis=1, keepdims=True)`."""
    if isinstance(kwargs.get("out"), QTensor):
        raise UnsupportedOpError(
            f"out= of a quantized value, at {user_line()}: write x = f(...) instead of f(..., out=x)"
        )
    given = {name: value for name, value in kwargs.items() if name != "out" or value is not None}
    return {_NUMPY_NAMES.get(name, name): value for name, value in given.items()}


def _require_one_kind(spec: OpSpec, args: Any, kwargs: dict[str, Any], where: str) -> None:
    plain = dict(spec.plain_arguments)
    by_name = {name: value for name, value in kwargs.items() if name not in plain.values()}
    operands = tensors_in([[value for i, value in enumerate(args) if i not in plain], by_name])
    operands = [t for t in operands if not is_number_or_empty(t)]
    has_float = any(not isinstance(t, QTensor) and t.is_floating_point() for t in operands)
    if has_float and any(isinstance(t, QTensor) for t in operands):
        raise UnsupportedOpError(
            f"{where}: operands are partly float, called at {user_line()}; put a QuantStub before each float operand "
            "(parameters and buffers need none)"
        )


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in a nest of tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [t for item in value for t in tensors_in(item)]
    return [t for item in value.values() for t in tensors_in(item)] if isinstance(value, dict) else []


class FunctionOp(QuantOp):
    """A torch function as a module; in float until prepared.

    Args:
        function: canonical function name.
        func: the torch function to call in float.
        bound: keyword arguments that a float module stood for.
        label: class name that tables print.
    """

    def __init__(self, function: str, func: Any, bound: dict[str, Any] | None = None, label: str = "") -> None:
        super().__init__()
        self.function, self.func = function, func
        self.bound = bound or {}
        self.label = label or f"FunctionOp[{function}]"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.func(*args, **{**self.bound, **kwargs})

    def __getstate__(self) -> dict[str, Any]:
        """Functions that pickle cannot find by themselves (F.max_pool2d) go as module and name."""
        state = self.__dict__.copy()
        owner, name = getattr(self.func, "__module__", None), getattr(self.func, "__name__", "")
        if getattr(sys.modules.get(owner or ""), name, None) is self.func is not None:
            state["func"] = (owner, name)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if isinstance(self.func, tuple):
            owner, name = self.func
            self.func = getattr(importlib.import_module(owner), name)

    def extra_repr(self) -> str:
        return ", ".join([self.function, *(f"{k}={v}" for k, v in self.bound.items())])

    def _get_name(self) -> str:
        return self.label


class FakeQuantFunction(FunctionOp):
    """Fake-quant form of a function with its own output scale."""

    activation_post_process: FakeQuantize | None
    ran_in_float = False  # outside the stubs: a scale is then not missed

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Function on real values, output fake-quantized; plain float in and out where nothing is quantized."""
        spec = spec_of_function(self.function) or get_spec(self.function)
        kwargs = {**self.bound, **kwargs}
        fake_quant = self.activation_post_process
        args, kwargs = with_fake_quant_constants(self, spec, args, kwargs)
        result = in_place(lambda *a: run_fake_quant(spec, a, kwargs, fake_quant), args, kwargs)
        self.ran_in_float = self.ran_in_float or not isinstance(result, QTensor) or keeps_scale(spec, args, kwargs)
        return result

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """The quantizers of constants are made from the checkpoint's keys."""
        constants_from_keys(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def to_integer(self) -> IntegerFunction:
        """The integer form."""
        module = adopt(IntegerFunction, self)
        take_output(module, self.activation_post_process)
        return module


class IntegerFunction(FunctionOp):
    """Integer form of a function with its own output scale."""

    out_scale: Tensor | None
    out_info: QInfo | None
    out_dtype: str

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Codes in, codes out."""
        spec = spec_of_function(self.function) or get_spec(self.function)
        args, kwargs = with_integer_constants(self, spec, args, {**self.bound, **kwargs})
        return in_place(lambda *a: run_integer(spec, a, kwargs, output_of(self), self._get_name()), args, kwargs)


def make_fake_quant_function(
    module: nn.Module, function: str, bound: dict[str, Any], label: str, qconfig: QConfig
) -> nn.Module:
    """Fake-quant form of a function, placed like `module`."""
    spec = spec_of_function(function)
    if spec is not None and spec.function_form is not None:
        return spec.function_form(module, function, bound, label, qconfig)
    new = FakeQuantFunction(function, None, bound, label)
    new.activation_post_process = make_activation(qconfig, module)
    new.train(module.training)
    return new


class FakeQuantFloatFunctional(FloatFunctional):
    """FloatFunctional with a fake-quantized output."""

    activation_post_process: FakeQuantize | None
    ran_in_float = False  # outside the stubs: a scale is then not missed

    def forward(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """Function on real values, output fake-quantized."""
        spec = spec_of_method(function)
        args, kwargs = with_fake_quant_constants(self, spec, args, kwargs)
        result = run_fake_quant(spec, args, kwargs, self.activation_post_process)
        self.ran_in_float = self.ran_in_float or not isinstance(result, QTensor) or keeps_scale(spec, args, kwargs)
        return result

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """The quantizers of constants are made from the checkpoint's keys."""
        constants_from_keys(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def to_integer(self) -> IntegerFloatFunctional:
        """The integer form."""
        module = adopt(IntegerFloatFunctional, self)
        take_output(module, self.activation_post_process)
        return module

    def _get_name(self) -> str:
        return "FloatFunctional"


class IntegerFloatFunctional(FloatFunctional):
    """FloatFunctional on codes."""

    out_scale: Tensor | None
    out_info: QInfo | None
    out_dtype: str

    def forward(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """Codes in, codes out."""
        spec = spec_of_method(function)
        args, kwargs = with_integer_constants(self, spec, args, kwargs)
        return run_integer(spec, args, kwargs, output_of(self), "FloatFunctional")

    def _get_name(self) -> str:
        return "FloatFunctional"


def spec_of_op(module: nn.Module, method: str = "") -> OpSpec | None:
    """Operator that a float leaf module runs; `method` is the one called on a FloatFunctional."""
    if isinstance(module, FloatFunctional):
        return spec_of_function(method)
    return spec_of_function(module.function) if isinstance(module, FunctionOp) else spec_of_module(module)


def spec_of_form(module: nn.Module, method: str = "") -> OpSpec | None:
    """As `spec_of_op`, for the fake-quant and integer forms too: they extend the class they stand for, or name it."""
    cls = getattr(module, "stands_for", type(module))
    return spec_of_op(module, method) or next((s for base in cls.__mro__ if (s := spec_of_class(base))), None)


def make_fake_quant_functional(module: FloatFunctional, qconfig: QConfig) -> FakeQuantFloatFunctional:
    """Fake-quant form of a FloatFunctional."""
    new = adopt(FakeQuantFloatFunctional, module)
    new.activation_post_process = make_activation(qconfig, module)
    return new


def take_output(module: Any, fake_quant: FakeQuantize | None) -> None:
    """Give an integer form the output quantization of its fake-quant form."""
    module._modules.pop("activation_post_process", None)
    module.__dict__.pop("activation_post_process", None)
    constants_to_scales(module)
    module.register_buffer("out_scale", None if fake_quant is None else _scale_or_nothing(fake_quant))
    module.out_info = None if fake_quant is None else fake_quant.info
    module.out_dtype = "torch.float32" if fake_quant is None else fake_quant.dtype


def _scale_or_nothing(fake_quant: FakeQuantize) -> Tensor:
    """The scale, or an empty tensor where none is known: the op then runs in float only."""
    scale = fake_quant.tensor_scale.detach().clone()
    return scale if fake_quant.is_calibrated else scale.new_empty(0)


class _Cache(dict[Any, Any]):
    """What a converted op computed from scales alone; neither copied nor pickled with the model."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Cache:
        return _Cache()

    def __reduce__(self) -> Any:
        return (_Cache, ())


def output_of(module: Any) -> OutputQuant | None:
    """Output quantization of an integer form; None where its output has high precision."""
    if module.out_scale is None or module.out_info is None:
        return None
    return OutputQuant(module.out_scale, module.out_info, module.__dict__.setdefault("_cache", _Cache()))
