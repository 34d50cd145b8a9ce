"""Automatic boundaries of the eager front end: what has no quantized form gets real values and is quantized again."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from profiler.errors import NotCalibratedError
from profiler.quant.eager.running import FQN_ATTRIBUTE, running_root
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.modules import make_activation, quantized_output
from profiler.quant.naming import join
from profiler.quant.ops.functional import FunctionOp, tensors_in
from profiler.quant.qconfig import QConfig
from profiler.quant.qtensor import QTensor, first_qtensor, to_float
from profiler.quant.states import join_state
from profiler.quant.stubs import FakeQuantStub

# Attributes of a module behind a boundary, and of one whose functions give plain results.
_BOUNDARY, _KIND = "quant_boundary", "quant_boundary_input"
FLOAT_RESULTS = "quant_float_results"
_OUTPUT = "activation_post_process"


def add_boundary(module: nn.Module, qconfig: QConfig | None) -> None:
    """Let a float op live among quantized values.

    Its quantized inputs become real values; its float results get a fake quant of the qconfig each, made on the first
    forward that needs it. With qconfig None, or activation None, they stay plain. Without quantized inputs nothing
    happens.
    """
    module.__dict__["qconfig"] = qconfig
    module.__dict__[_BOUNDARY] = True
    module.__dict__[FLOAT_RESULTS] = qconfig is None or qconfig.activation is None
    module.register_forward_pre_hook(_dequantize_inputs, with_kwargs=True)
    module.register_forward_hook(_quantize_results)
    module._register_load_state_dict_pre_hook(_outputs_from_keys, with_module=True)  # type: ignore[no-untyped-call]


def float_function(function: str, parent: nn.Module, qconfig: QConfig) -> FunctionOp:
    """A function without a quantized form as a module behind a boundary; its `func` is set at each call."""
    module = FunctionOp(function, None)
    module.train(parent.training)
    add_boundary(module, qconfig)
    return module


def has_boundary(module: nn.Module) -> bool:
    """Whether a module runs in float behind an automatic boundary."""
    return bool(module.__dict__.get(_BOUNDARY))


def convert_boundaries(model: nn.Module) -> None:
    """Replace the fake quants behind boundaries by quantizers to codes, in place."""
    for module in model.modules():
        if not has_boundary(module):
            continue
        for name, child in list(module._modules.items()):
            if name.startswith(_OUTPUT) and isinstance(child, FakeQuantize):
                module._modules[name] = _codes_writer(child)


def has_float_result(result: Any) -> bool:
    """Whether a nest of results holds a float tensor."""
    return any(t.is_floating_point() for t in tensors_in(result))


def _codes_writer(fake_quant: FakeQuantize) -> nn.Module | None:
    if not fake_quant.is_calibrated:
        return None
    stub = FakeQuantStub()
    stub.activation_post_process = fake_quant
    stub.train(fake_quant.training)
    return stub.to_integer()


def _dequantize_inputs(module: nn.Module, args: Any, kwargs: Any) -> Any:
    source = first_qtensor([args, kwargs])
    kind = "" if source is None else "codes" if source.holds_codes else "values"
    module.__dict__[_KIND] = kind
    if not kind:
        return None
    args, kwargs = to_float(args), to_float(kwargs)
    if module.__dict__.get("overwrites_input"):  # the caller writes the result back; autograd keeps the input
        args = (args[0].clone(), *args[1:])
    return args, kwargs


def _quantize_results(module: nn.Module, args: Any, result: Any) -> Any:
    kind = module.__dict__.pop(_KIND, "")
    if not kind or module.__dict__[FLOAT_RESULTS] or not has_float_result(result):
        return None
    index = -1

    def quantize(value: Any) -> Any:
        nonlocal index
        if not isinstance(value, Tensor) or not value.is_floating_point() or isinstance(value, QTensor):
            return value
        index += 1
        output = _output(module, f"{_OUTPUT}_{index}" if index else _OUTPUT, is_converted=kind == "codes")
        return quantized_output(value.float(), output) if isinstance(output, FakeQuantize) else output(value.float())

    return tree_map(quantize, result)


def _output(module: nn.Module, name: str, *, is_converted: bool) -> nn.Module:
    """The quantizer of one result; in a prepared model it is made where it does not exist."""
    child = module._modules.get(name)
    if child is not None:
        return child
    fqn = module.__dict__.get(FQN_ATTRIBUTE, "")
    if is_converted:
        raise NotCalibratedError(
            f"{fqn or type(module).__name__}: this op runs in float inside a converted model, and no scale is known "
            "for its result; calibrate with data that reaches it, then convert again"
        )
    fake_quant = _new_output(module, name)
    join_state(fake_quant, running_root() or module, join(fqn, name), module)
    return fake_quant


def _new_output(module: nn.Module, name: str) -> FakeQuantize:
    fake_quant = make_activation(module.__dict__["qconfig"], module)
    assert fake_quant is not None  # FLOAT_RESULTS was asked
    module.add_module(name, fake_quant)
    return fake_quant


def _outputs_from_keys(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    if module.__dict__[FLOAT_RESULTS] or not isinstance(module.__dict__.get("qconfig"), QConfig):
        return
    names = {key[len(prefix) :].split(".", 1)[0] for key in state_dict if key.startswith(prefix + _OUTPUT)}
    for name in sorted(names - module._modules.keys()):
        _new_output(module, name)
