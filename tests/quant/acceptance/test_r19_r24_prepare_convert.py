"""R3, R4, R19, R20 and R24: stubs, unsupported ops, prepare and convert, through the public API."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tests.models as nets
from profiler.errors import UnsupportedOpError
from profiler.quant import (
    DeQuantStub,
    QTensor,
    QuantStub,
    convert,
    convert_fx,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_8bit_weight_32bit_out_fake_quant_qconfig,
    default_calib_16bit_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
    fuse_modules,
    prepare_qat,
    prepare_qat_fx,
)
from tests.quant.stages import FRONT_ENDS, calibrate

INT8, INT16 = default_calib_8bit_fake_quant_qconfig, default_calib_16bit_fake_quant_qconfig
OUT = default_calib_8bit_weight_32bit_out_fake_quant_qconfig


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_state(model: nn.Module, before: dict[str, Tensor]) -> bool:
    after = model.state_dict()
    return list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


class _FixedStub(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(scale=1 / 128), DeQuantStub()

    def forward(self, x: Tensor) -> Any:
        return self.dequant(self.quant(x))


def test_r3_fixed_scale_stub_gives_multiples_of_its_scale_whatever_the_data() -> None:
    model = _FixedStub()
    model.qconfig = INT8
    calib = calibrate(prepare_qat(model), [torch.rand(4, 3, 8, 8) * 9 - 4])
    y = calib(torch.rand(4, 3, 8, 8) * 2 - 1)
    assert torch.equal(y * 128, torch.round(y * 128))
    assert float(y.min()) >= -1
    assert torch.equal(calib.quant.activation_post_process.scale, torch.tensor([1 / 128]))
    quantized = convert(calib)
    assert torch.equal(quantized(y), y)


class _FloatPart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.tail = QuantStub(), _Tail()

    def forward(self, x: Tensor) -> Any:
        return self.tail(self.quant(x))


class _Tail(nn.Module):
    qconfig = None

    def forward(self, x: Tensor) -> Tensor:
        return torch.erfinv(x * 0.1)


def test_r4_unsupported_op_on_qtensor_names_op_module_and_line() -> None:
    model = _FloatPart()
    model.qconfig = default_qat_8bit_fake_quant_qconfig
    model.tail.qconfig = None
    line = inspect.getsourcelines(_Tail.forward)[1] + 1
    with pytest.raises(UnsupportedOpError) as raised:
        prepare_qat(model)(torch.rand(2, 3))
    message = str(raised.value)
    assert "mul" in message
    assert "tail" in message
    assert f"{__file__}:{line}" in message


def test_r19_prepare_leaves_the_float_model_alone_and_prepares_it_twice() -> None:
    model = nets.make(nets.Residual)
    fused = fuse_modules(model, [["stem.convolution", "stem.normalisation", "stem.activate"]])
    fused.qconfig = INT8
    before, (x,) = state_of(fused), nets.images(1)
    expected = fused(x)
    calib, qat = prepare_qat(fused), prepare_qat(fused)
    calibrate(calib, nets.images(3))
    qat.train()
    qat(x).sum().backward()
    assert same_state(fused, before)
    assert all(p.grad is None for p in fused.parameters())
    assert torch.equal(fused(x), expected)
    owned = {id(m) for m in fused.modules()}
    assert not owned & {id(m) for m in calib.modules()}
    assert not {p.data_ptr() for p in calib.parameters()} & {p.data_ptr() for p in qat.parameters()}


class _Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        return self.third(self.second(self.first(x)).mean((2, 3)))


def _dtypes(model: nn.Module) -> list[str]:
    forms = [model.get_submodule(name).activation_post_process for name in ("first", "second", "third")]
    return ["float" if form is None else form.dtype for form in forms]


@pytest.mark.parametrize("as_list", [False, True])
def test_r20_name_beats_type_beats_global_and_own_attribute_beats_all(as_list: bool) -> None:
    names: Any = {"second": INT16, "third": ...}
    config = {
        "": INT8,
        "module_type": [(nn.Conv2d, OUT), (nn.Linear, INT16)],
        "module_name": list(names.items()) if as_list else names,
    }
    model = _Named().eval()
    assert _dtypes(prepare_qat_fx(model, config)) == ["float", "qint16", "qint16"]
    own = copy.deepcopy(model)
    own.second.qconfig = INT8
    assert _dtypes(prepare_qat_fx(own, config)) == ["float", "qint8", "qint16"]
    assert _dtypes(prepare_qat_fx(model, {"": INT8, "module_name": ...})) == ["qint8"] * 3


@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_r24_converted_weights_are_int8_and_each_layer_is_within_one_code(front_end: str) -> None:
    prepare, convert_it = FRONT_ENDS[front_end]
    model = nets.make(nets.Residual)
    calib = prepare(model, nets.images(3))
    quantized = convert_it(calib)
    weights = [m.weight for m in quantized.modules() if isinstance(getattr(m, "weight", None), Tensor)]
    assert weights
    assert all(weight.dtype == torch.int8 for weight in weights)
    for name, (inputs, expected) in _codes_of(calib, nets.images(4)[-1]).items():
        actual = quantized.get_submodule(name)(*inputs)
        apart = (actual.int_repr().int() - expected.int()).abs()
        assert int(apart.max()) <= 1, name
        assert float((apart == 0).float().mean()) >= 0.99, name


def _codes_of(calib: nn.Module, x: Tensor) -> dict[str, tuple[tuple[Any, ...], Tensor]]:
    """Inputs (as codes) and output codes of every layer that gives a quantized value."""
    found: dict[str, tuple[tuple[Any, ...], Tensor]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, QTensor) and all(isinstance(a, QTensor) for a in args):
                inputs = tuple(QTensor.wrap(a.int_repr(), a.scale, a.qdtype) for a in args)
                found[name] = (inputs, output.int_repr())

        return hook

    handles = [m.register_forward_hook(note(n)) for n, m in calib.named_modules() if hasattr(m, "to_integer")]
    with torch.no_grad():
        calib(x)
    for handle in handles:
        handle.remove()
    assert found
    return found


def test_r19_fx_prepare_twice_from_one_model_shares_nothing() -> None:
    model = nets.make(nets.Residual)
    before = state_of(model)
    first, second = prepare_qat_fx(model, {"": INT8}), prepare_qat_fx(model, {"": INT16})
    convert_fx(calibrate(first, nets.images(2)))
    assert same_state(model, before)
    assert not {id(m) for m in first.modules()} & {id(m) for m in second.modules()}
