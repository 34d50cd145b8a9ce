"""Names of functions in traced models: the k that a running model counts, whatever tracing leaves out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.quant import March, prepare_qat_fx, set_march
from profiler.quant.naming import op_name
from profiler.quant.ops.functional import FunctionOp
from profiler.quant.qconfig import default_calib_8bit_fake_quant_qconfig


@pytest.fixture(autouse=True)
def _march() -> None:
    set_march(March.BAYES)


def function_ops(model: nn.Module, *inputs: Any) -> set[str]:
    prepared = prepare_qat_fx(model.eval(), {"": default_calib_8bit_fake_quant_qconfig}, example_inputs=inputs)
    return {op_name(n) for n, m in prepared.named_modules() if isinstance(m, FunctionOp)}


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1)
        self.register_buffer("mean", torch.ones(2, 1, 1))

    def body(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class ConstantFirst(Inner):
    def body(self, x: Tensor) -> Tensor:
        return self.conv(x + (self.mean + 1))


class UnpackThenSlice(Inner):
    def body(self, x: Tensor) -> Tensor:
        left, right = self.conv(x).chunk(2, 1)
        return left[:, 0] + right[:, 1]


class SizesThenMultiply(Inner):
    def body(self, x: Tensor) -> Tensor:
        return self.conv(x).reshape(x.shape[0], x.shape[1] * 2 * x.shape[2], -1) * 2


class TupleArithmetic(Inner):
    def body(self, x: Tensor) -> Tensor:
        parts = torch.split(self.conv(x), 2, 1)
        return torch.cat(parts[::-1] + parts, 1) + 1


class Transposed(Inner):
    def body(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(1).T.sum() + x.mT.sum()


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (ConstantFirst, {"add_1"}),
        (UnpackThenSlice, {"chunk_0", "getitem_0", "getitem_1", "add_0"}),
        (SizesThenMultiply, {"reshape_0", "mul_0"}),
        (TupleArithmetic, {"split_0", "cat_0", "add_0"}),
        (Transposed, {"flatten_0", "T_0", "sum_0", "mT_0", "sum_1", "add_0"}),
    ],
)
@pytest.mark.parametrize("is_nested", [False, True])
def test_function_names_count_tensor_calls_of_the_running_model(net: Any, expected: set[str], is_nested: bool) -> None:
    model = nn.Sequential(net()) if is_nested else net()
    prefix = "0." if is_nested else ""
    assert function_ops(model, torch.randn(2, 2, 3, 3)) == {prefix + name for name in expected}


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, double: bool) -> Tensor:
        if mask is not None:
            x = x * mask
        return self.fc(x) * 2 if double else self.fc(x)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("has_mask", [False, True])
def test_optional_argument_keeps_its_name_and_is_traced_by_value(double: bool, has_mask: bool) -> None:
    model, x = Optional(), torch.randn(2, 3)
    mask = torch.ones(2, 3) if has_mask else None
    qconfig = {"": default_calib_8bit_fake_quant_qconfig}
    prepared = prepare_qat_fx(model.eval(), qconfig, example_inputs=(x, mask, double))
    prepared.apply(lambda m: m.disable_fake_quant() if hasattr(m, "disable_fake_quant") else None)
    torch.testing.assert_close(prepared.train()(x, mask=mask, double=double), model(x, mask=mask, double=double))


def test_quantized_chunks_reach_the_next_conv_quantized() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            left, _ = self.first(x).chunk(2, 1)
            return self.second(left)

    prepared = prepare_qat_fx(
        Halves().eval(), {"": default_calib_8bit_fake_quant_qconfig}, example_inputs=(torch.randn(2, 2, 3, 3),)
    )
    assert hasattr(prepared.second, "weight_fake_quant")


def test_float_ops_inside_the_region_are_named_in_the_effects() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.LocalResponseNorm(2), nn.LPPool2d(2, 1), nn.Conv2d(4, 2, 1)).eval()
    prepared = prepare_qat_fx(
        model, {"": default_calib_8bit_fake_quant_qconfig}, example_inputs=(torch.randn(2, 2, 3, 3),)
    )
    reasons = {e.op: e.reason for e in prepared.quant_effects if e.actual == "torch.float32" and e.reason}
    assert set(reasons) == {"1", "2"}
    assert "no quantized form of LPPool2d" in reasons["2"]


def test_high_precision_output_shared_op_keeps_its_quantized_output_for_its_other_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.last = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.shared(self.shared(x))
            return x, self.last(x)

    qconfig = {"": default_calib_8bit_fake_quant_qconfig}
    prepared = prepare_qat_fx(Twice().eval(), qconfig, example_inputs=(torch.randn(2, 3),), high_precision_outputs=True)
    assert prepared.shared.activation_post_process is not None
    assert prepared.last.activation_post_process is None
