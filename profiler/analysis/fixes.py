"""Patches: code that repairs what a rule found, ready to paste."""

from __future__ import annotations

from collections.abc import Sequence

from profiler.analysis.context import Context
from profiler.records import LayerRecord, Patch, UnfusedGroup

_STATES = "from profiler.quant import FakeQuantState, set_fake_quantize\n"
_CALIBRATE = (
    _STATES + "model.eval()\n"
    "set_fake_quantize(model, FakeQuantState.CALIBRATION)\n"
    "for batch in batches:\n"
    "    model(batch)\n"
    "model.eval()\n"
    "set_fake_quantize(model, FakeQuantState.VALIDATION)"
)


def calibrate(names: Sequence[str] = (), *, first: str = "") -> Patch:
    """Calibrate the prepared model (again), after what the comment `first` says."""
    code = f"# {first}\n{_CALIBRATE}" if first else _CALIBRATE
    return Patch("calibrate", names[0] if names else "", code, {"names": ",".join(names)} if names else {})


def validate() -> Patch:
    """Switch the prepared model to rounding without observing."""
    code = _STATES + "model.eval()\nset_fake_quantize(model, FakeQuantState.VALIDATION)"
    return Patch("set_state", "", code, {"state": "VALIDATION"})


def int16(context: Context, layers: Sequence[LayerRecord]) -> Patch:
    """Give the outputs of some ops int16; an automatic stub has the qconfig of the op that reads it."""
    qconfig = f"default_{_purpose(context)}_16bit_fake_quant_qconfig"
    configured: dict[str, LayerRecord] = {}
    for layer in layers:
        is_automatic = layer.kind == "quant_stub" and context.is_function(layer)
        for x in context.consumers_of(layer) if is_automatic else (layer,):
            configured[x.op_name] = x
    code = _set_qconfig(context, tuple(configured.values()), qconfig)
    return Patch("int16", layers[0].op_name, code, {"dtype": "qint16"})


def int16_weight(context: Context, layer: LayerRecord) -> Patch:
    """Give a weighted op int16 weights."""
    code = (
        "from profiler.quant import get_default_qconfig\n"
        'fine = get_default_qconfig(activation_observer="mse", weight_qkwargs={"dtype": "qint16"}, '
        f'purpose="{_purpose(context)}")\n'
    )
    return Patch("int16_weight", layer.op_name, code + _assign(context, [layer], "fine"), {"dtype": "qint16"})


def high_precision_output(context: Context, layer: LayerRecord) -> Patch:
    """Leave an op's output unquantized."""
    qconfig = f"default_{_purpose(context)}_8bit_weight_32bit_out_fake_quant_qconfig"
    return Patch("high_precision_output", layer.op_name, _set_qconfig(context, [layer], qconfig))


def fixed_scale(context: Context, layer: LayerRecord, scale: float, dtype: str) -> Patch:
    """Give an op's output a scale by hand; a QuantStub of the user's takes it itself."""
    if layer.kind == "quant_stub" and not context.is_function(layer):
        code = f"model.get_submodule({layer.op_name!r}).scale = {scale:.6g}   # before prepare"
        return Patch("fixed_scale", layer.op_name, code, {"scale": scale})
    code = (
        "from profiler.quant import FixedScaleObserver, get_default_qconfig\n"
        "fixed = get_default_qconfig(\n"
        f'    activation_qkwargs={{"observer": FixedScaleObserver, "scale": {scale:.6g}, "dtype": "{dtype}"}},\n'
        f'    purpose="{_purpose(context)}",\n'
        ")\n"
    )
    assign = _assign(context, [layer], "fixed")
    return Patch("fixed_scale", layer.op_name, code + assign, {"scale": scale})


def unshare(layer: LayerRecord, num_calls: int) -> Patch:
    """A module of its own for each call of a shared one."""
    parent, _, attribute = layer.op_name.rpartition(".")
    lines = ["import copy", f"shared = model.get_submodule({layer.op_name!r})"]
    for call in range(1, num_calls):
        lines.append(f"model.get_submodule({parent!r}).{_identifier(attribute)}_{call} = copy.deepcopy(shared)")
    lines.append(f"# in forward, use one of them per call instead of {layer.op_name}; then fuse and prepare again")
    return Patch("unshare", layer.op_name, "\n".join(lines), {"num_calls": num_calls})


def fuse(group: UnfusedGroup) -> Patch:
    """Make one op of a group; only a group that nothing hinders is fused by the code as it stands."""
    names = [name.partition("(")[0] for name in group.names]
    arguments: dict[str, str | float | int] = {"names": ",".join(group.names)}
    if "called as a function" in group.cause:
        code = _function_to_module(names)
    else:
        call = f"fuse_modules(model, {names!r}, inplace=True)   # before prepare_qat"
        if group.cause == "not listed for fusion":
            code = f"from profiler.quant import fuse_modules\n{call}"
        else:
            code = f"# {group.cause}\n# after that is changed:\n# {call}"
    return Patch("fuse", names[0], code, arguments)


def normalise_input(name: str, minimum: float, maximum: float) -> Patch:
    """Move a model input to -1..1."""
    middle, half = (minimum + maximum) / 2, max((maximum - minimum) / 2, 1e-12)
    shift = f"x - {middle:.6g}" if middle >= 0 else f"x + {-middle:.6g}"
    code = f"x = ({shift}) / {half:.6g}   # before {name}; retrain, or fold the opposite into the first conv"
    return Patch("normalise_input", name, code, {"shift": middle, "scale": half})


def _function_to_module(names: Sequence[str]) -> str:
    """Comments on what to edit, and the call that fuses afterwards."""
    lines, modules = ["# edit the float model:"], []
    for name in names:
        parent, _, leaf = name.rpartition(".")
        function, _, number = leaf.rpartition("_")
        if not (number.isdigit() and function in ("relu", "relu6")):
            modules.append(name)
            continue
        new = function if number == "0" else f"{function}_{number}"
        kind = "nn.ReLU6()" if function == "relu6" else "nn.ReLU()"
        lines.append(f"#   __init__: self.{new} = {kind}; forward: self.{new}(x) in place of the function")
        modules.append(f"{parent}.{new}" if parent else new)
    return "\n".join([*lines, f"# then: fuse_modules(model, {modules!r}, inplace=True)   # before prepare_qat"])


def _purpose(context: Context) -> str:
    return "qat" if context.state is not None and context.state.purpose == "qat" else "calib"


def _set_qconfig(context: Context, layers: Sequence[LayerRecord], qconfig: str) -> str:
    modules = [layer for layer in layers if not context.is_function(layer)]
    functions = [layer.op_name for layer in layers if context.is_function(layer) and not layer.fused_names]
    code = f"from profiler.quant import {qconfig}\n" + _assign(context, layers, qconfig) if modules else ""
    if not functions:
        return code or _assign(context, layers, qconfig)
    default = f"default_{_purpose(context)}_8bit_fake_quant_qconfig"
    entries = ", ".join(f"{name!r}: {qconfig}" for name in functions)
    by_name = (
        f"from profiler.quant import {default}, {qconfig}\n"
        f'qconfig_dict = {{"": {default}, "module_name": {{{entries}}}}}\n'
        "# for prepare_qat_fx(model, qconfig_dict) or model_profiler(..., qconfig_dict=qconfig_dict);\n"
        f"# in eager mode put a module in the place of the function first, then set its qconfig"
    )
    return f"{code}\n{by_name}" if code else by_name


def _assign(context: Context, layers: Sequence[LayerRecord], qconfig: str) -> str:
    """Lines that set the qconfig of modules; a group that ends in an add has its qconfig at the conv or at the add."""
    names: dict[str, None] = {}
    for layer in layers:
        names.update(dict.fromkeys(layer.fused_names[:1]))
        if not context.is_function(layer):
            names[layer.op_name] = None
    lines = [f"model.get_submodule({name!r}).qconfig = {qconfig}   # before prepare" for name in names]
    return "\n".join(lines)


def _identifier(name: str) -> str:
    return name if name.isidentifier() else f"copy_{name}"
