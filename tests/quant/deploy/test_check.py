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
