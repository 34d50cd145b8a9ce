"""What the tests of composite operators share: float forms, calibrated forms, and inner ops fed the same codes."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from profiler.quant import (
    QConfig,
    QTensor,
    default_calib_8bit_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
)
from profiler.quant.affine import qinfo, quantize
from profiler.quant.ops.functional import tensors_in
from profiler.quant.qtensor import to_plain
from profiler.quant.states import named_fake_quants
from profiler.quant.swap import fake_quant_form


def switch(form: nn.Module, *, observer: bool, fake_quant: bool) -> None:
    """Put all fake quants into one state, in training mode where they observe."""
    for _, fq in named_fake_quants(form):
        fq.enable_observer(observer)
        fq.enable_fake_quant(fake_quant)
        fq.train(observer)


def form_of(module: nn.Module, qconfig: QConfig = default_calib_8bit_fake_quant_qconfig) -> Any:
    """Fake-quant form of a copy, observers and fake quants off: the float decomposition."""
    form = fake_quant_form(copy.deepcopy(module), qconfig)
    switch(form, observer=False, fake_quant=False)
    return form


def assert_same_floats(actual: Any, expected: Any, atol: float = 1e-5) -> None:
    """Equal nests of tensors but for rounding of float32."""
    actual, expected = tensors_in(to_plain(actual)), tensors_in(expected)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=atol)


def quantized_input(x: Tensor, dtype: str = "qint8") -> QTensor:
    """Float values rounded to a grid that covers them, as a prepared model passes them on."""
    scale = x.abs().max() / qinfo(dtype).half_range
    return QTensor.wrap(quantize(x, scale, qinfo(dtype)) * scale, scale, dtype)


def as_codes(value: Any) -> Any:
    """The same quantized values as a converted model passes them on."""
    return tree_map(lambda v: v.like(v.int_repr()) if isinstance(v, QTensor) else v, value)


def as_values(value: Any) -> Any:
    """The same codes as a prepared model passes them on."""
    return tree_map(lambda v: v.like(v.dequantize()) if isinstance(v, QTensor) else v, value)


def calibrated(
    module: nn.Module,
    calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]],
    qconfig: QConfig = default_calib_8bit_fake_quant_qconfig,
) -> Any:
    """Fake-quant form in VALIDATION that has observed these calls."""
    form = fake_quant_form(copy.deepcopy(module).eval(), qconfig)
    switch(form, observer=True, fake_quant=False)
    with torch.no_grad():
        for args, kwargs in calls:
            form(*args, **kwargs)
    switch(form, observer=False, fake_quant=True)
    return form


def assert_inner_ops_agree(form: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Counter[int]:
    """Every op inside, integer and fake-quant, fed the codes that the integer form passes on: at most 1 code apart.

    Returns:
        How often the results of the whole are how many codes apart.
    """
    kwargs = kwargs or {}
    integer = copy.deepcopy(form).to_integer()
    calls: list[tuple[str, Any, Any, Any]] = []
    inner: Counter[int] = Counter()

    def keep(name: str) -> Any:
        return lambda _, args, kwargs, result: calls.append((name, args, kwargs, result))

    for name, module in integer.named_modules():
        if name and not list(module.children()):
            module.register_forward_hook(keep(name), with_kwargs=True)
    with torch.no_grad():
        result = integer(*as_codes(args), **as_codes(kwargs))
        for name, given, named, out in calls:
            expected = form.get_submodule(name)(*as_values(given), **as_values(named))
            apart = differences(expected, out)
            assert max(map(abs, apart), default=0) <= 1, f"{name}: {apart}"
            inner.update(apart)
        assert inner[0] >= 0.999 * inner.total() - 1, f"inner ops: {inner}"
        whole = differences(form(*args, **kwargs), result)
    print("inner ops, integer - fake quant in codes:", dict(inner), "whole:", dict(sorted(whole.items())))
    return whole


def differences(fake: Any, integer: Any) -> Counter[int]:
    """Integer minus fake-quant codes of equal nests of quantized tensors."""
    counts: Counter[int] = Counter()
    for f, i in zip(tensors_in(fake), tensors_in(integer), strict=True):
        assert isinstance(f, QTensor)
        assert isinstance(i, QTensor)
        assert f.shape == i.shape
        torch.testing.assert_close(f.scale, i.scale, rtol=1e-6, atol=0)
        counts.update((i.int_repr().long() - f.int_repr().long()).flatten().tolist())
    return counts


def sqnr_db(*, reference: Tensor, test: Tensor) -> float:
    """Signal over error in dB; higher is better."""
    return float(10 * torch.log10(reference.square().sum() / (test - reference).square().sum()))


def assert_trains(module: nn.Module, args: tuple[Any, ...]) -> None:
    """In the QAT state the loss has a finite gradient for every parameter, and observers have seen every value."""
    form = fake_quant_form(copy.deepcopy(module).train(), default_qat_8bit_fake_quant_qconfig)
    torch.stack([t.square().mean() for t in tensors_in(to_plain(form(*args)))]).sum().backward()
    assert list(form.parameters())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in form.parameters())
    assert all(fq.is_calibrated for _, fq in named_fake_quants(form))
