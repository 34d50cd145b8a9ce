"""check_model: what the target can run, with the op's name and the line of the user's code."""

from __future__ import annotations

import logging
import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.errors import ConfigError, ModelError, StateError
from profiler.quant import DeQuantStub, QuantStub, check_model, default_calib_16bit_fake_quant_qconfig
from profiler.quant.deploy.check import find_problems
from profiler.quant.deploy.layers import collect_layers
from tests.quant.deploy.models import IMAGE, Net, converted

HERE = r"test_check\.py:\d+"


class WideKernel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv = nn.Conv2d(3, 2, 33, padding=16)

    def forward(self, x: Tensor) -> Any:
        return self.dequant(self.conv(self.quant(x)))


@pytest.fixture(scope="module")
def model() -> Any:
    return converted()


@pytest.mark.parametrize("inputs", [IMAGE, (IMAGE,), [IMAGE], {"image": IMAGE}])
def test_r33_supported_model_gives_0_for_inputs_in_every_form(inputs: Any, model: Any) -> None:
    assert check_model(model, inputs) == 0


@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_r33_unsupported_op_is_named_with_its_source_line(front_end: str, caplog: Any) -> None:
    model = converted(front_end, model=WideKernel())

    with caplog.at_level(logging.ERROR):
        assert check_model(model, IMAGE) == 1

    assert re.search(rf"conv: bayes: conv with kernel \(33, 33\).*{HERE}.*self\.conv\(", caplog.text)


def test_r33_traced_model_as_the_article_calls_it_a9(model: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(model, IMAGE, strict=False)

    assert check_model(traced, IMAGE, advice=1) == 0


def test_march_without_the_operator_is_a_problem(model: Any) -> None:
    problems = find_problems(model, IMAGE, "bernoulli2")

    assert [(p.op, p.reason) for p in problems] == [("fc", "bernoulli2 has no linear")]


def test_int16_on_a_march_without_it_is_a_problem_per_op() -> None:
    model = converted(qconfig=default_calib_16bit_fake_quant_qconfig)

    problems = {p.op: p.reason for p in find_problems(model, IMAGE, "bernoulli2")}

    assert "qint16" in problems["stem.0"]
    assert set(problems) >= {"stem.0", "skip", "fc"}


def test_broken_scale_is_a_problem_unless_scales_are_not_checked() -> None:
    model = converted()
    model.fc.out_scale.fill_(float("nan"))

    assert [p.op for p in find_problems(model, IMAGE)] == ["fc"]
    assert check_model(model, IMAGE) == 1


def test_advice_lists_the_slow_ops_with_their_time(model: Any, caplog: Any) -> None:
    with caplog.at_level(logging.INFO):
        check_model(model, IMAGE, advice=2.5)

    assert re.search(r"skip takes about \d+\.\d us on bayes", caplog.text)
    assert not re.search(r"flatten takes", caplog.text)
    assert "no vendor hardware" in caplog.text


def test_forward_that_fails_is_a_problem() -> None:
    model = converted("eager")

    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.stem = model.quant, model.stem

        def forward(self, x: Tensor) -> Any:
            return torch.fft.fft(self.stem(self.quant(x)))

    problems = find_problems(Wrong().eval(), IMAGE)

    assert len(problems) == 1
    assert re.search(rf"function fft_?\w* .*{HERE}", problems[0].reason)


def test_float_model_is_refused() -> None:
    with pytest.raises(ModelError, match="float model"):
        check_model(Net().eval(), IMAGE)


def test_training_mode_is_refused() -> None:
    model = converted()
    with pytest.raises(StateError, match="training mode"):
        check_model(model.train(), IMAGE)


def test_unknown_march_is_refused(model: Any) -> None:
    with pytest.raises(ConfigError, match="use one of"):
        check_model(model, IMAGE, march="mars")


class Joining(nn.Module):
    """A cat of operands with different scales."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.quant(x)
        return self.dequant(torch.cat([x, self.conv(x)], 1))


@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_bernoulli_takes_a_cat_of_operands_with_one_scale_only(front_end: str) -> None:
    model = converted(front_end, model=Joining())
    first, second = float(model.quant.out_scale), float(model.conv.out_scale)

    problems = find_problems(model, IMAGE, "bernoulli")

    assert [p.op for p in problems] == ["cat_0"]
    assert problems[0].reason.startswith(f"bernoulli has cat of operands with one scale, got {first:.6g}, {second:.6g}")
    assert find_problems(model, IMAGE, "bernoulli2") == []
    model.conv.out_scale.copy_(model.quant.out_scale)
    assert find_problems(model, IMAGE, "bernoulli") == []


class Indexing(nn.Module):
    """An argmax, which is the result or is read again."""

    def __init__(self, *, is_read: bool) -> None:
        super().__init__()
        self.quant, self.dequant, self.conv = QuantStub(), DeQuantStub(), nn.Conv2d(3, 3, 1)
        self.is_read = is_read

    def forward(self, x: Tensor) -> Any:
        y = self.conv(self.quant(x))
        index = torch.argmax(y, 1, keepdim=True)
        return self.dequant(torch.gather(y, 1, index)) if self.is_read else (self.dequant(y), index)


@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_bernoulli2_takes_argmax_as_model_output_only(front_end: str) -> None:
    assert find_problems(converted(front_end, model=Indexing(is_read=False)), IMAGE, "bernoulli2") == []
    model = converted(front_end, model=Indexing(is_read=True))

    reasons = {p.op: p.reason for p in find_problems(model, IMAGE, "bernoulli2")}

    assert reasons["argmax_0"] == "bernoulli2 has argmax as model output only; gather_0 reads it"
    assert find_problems(model, IMAGE, "bayes") == []


class FloatInTheMiddle(nn.Module):
    """Ops without a quantized form in front of, between and behind quantized ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.first, self.second, self.pool = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.LPPool2d(2, 2)

    def forward(self, x: Tensor) -> Any:
        y = self.first(self.quant(torch.lgamma(x.abs() + 1)))
        y = torch.lgamma(y.abs() + 1)
        y = self.pool(self.second(y))
        return torch.cumprod(self.dequant(y), 1)


def test_float_ops_between_quantized_ones_are_counted_and_named(caplog: Any) -> None:
    model = converted(model=FloatInTheMiddle())

    with caplog.at_level(logging.ERROR):
        assert check_model(model, IMAGE) == 2

    assert re.search(rf"lgamma_1: runs in float on the CPU: no quantized form of .*{HERE} \(y = torch", caplog.text)
    assert re.search(rf"pool: runs in float on the CPU: no quantized form of LPPool2d.*{HERE}", caplog.text)


class ByHand(nn.Module):
    """A softmax in float between stubs of the user."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.again, self.out, self.dequant = QuantStub(), QuantStub(), DeQuantStub(), DeQuantStub()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Any:
        y = torch.softmax(self.out(self.first(self.quant(x))), 1)
        return torch.softmax(self.dequant(self.second(self.again(y))), 1)


@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_float_op_between_stubs_by_hand_is_told_to_have_a_quantized_form(front_end: str) -> None:
    problems = find_problems(converted(front_end, model=ByHand()), IMAGE)

    assert [p.op for p in problems] == ["softmax_0"]
    assert "though softmax has a quantized form" in problems[0].reason


class ByParameter(nn.Module):
    """A product with a parameter, which the op quantizes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant, self.conv = QuantStub(), DeQuantStub(), nn.Conv2d(3, 4, 1)
        self.weight = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Any:
        return self.dequant(self.conv(self.quant(x)) * self.weight)


@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_parameter_operand_has_the_dtype_of_its_quantizer(front_end: str) -> None:
    model = converted(front_end, model=ByParameter())

    assert find_problems(model, IMAGE, "bayes") == []
    product = next(layer for layer in collect_layers(model, IMAGE) if layer.operator == "mul")
    assert [t.dtype for t in product.inputs] == ["qint8", "qint8"]
    assert product.inputs[1].num_bytes == 4
