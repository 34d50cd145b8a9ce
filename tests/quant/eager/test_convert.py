from __future__ import annotations

import copy
import io
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from profiler.errors import ModelError, UnsupportedOpError
from profiler.quant import (
    DeQuantStub,
    FakeQuantState,
    convert,
    default_qat_8bit_fake_quant_qconfig,
    get_default_qat_out_qconfig,
    prepare_qat,
    set_fake_quantize,
)
from profiler.quant.states import named_fake_quants
from tests.models import EAGER, CalledTwice, Failing, InPlaceAdd, Residual, Stubbed, images, make
from tests.quant.stages import eager


def converted(cls: type[nn.Module], **kwargs: Any) -> tuple[Any, Any]:
    prepared = eager(make(cls), images(), **kwargs)
    return prepared, convert(prepared)


@pytest.mark.parametrize("cls", EAGER)
def test_convert_output_is_near_the_validated_one(cls: type[nn.Module]) -> None:
    prepared, integer = converted(cls)
    for x in images():
        expected, y = prepared(x), integer(x)
        assert type(y) is Tensor
        assert float((y - expected).detach().abs().max()) <= 0.03 * float(expected.detach().abs().max())


@pytest.mark.parametrize("cls", EAGER)
def test_convert_leaves_no_fake_quant_and_no_float_weight(cls: type[nn.Module]) -> None:
    prepared, integer = converted(cls)
    assert list(named_fake_quants(integer)) == []
    assert list(named_fake_quants(prepared))
    assert all(name.startswith("post.") for name, _ in integer.named_parameters())
    assert not any("qconfig" in m.__dict__ for m in integer.modules())


def test_convert_leaves_the_prepared_model_as_it_was() -> None:
    prepared, _ = converted(Residual)
    x = images()[0]
    before = prepared(x)
    state = {k: v.clone() for k, v in prepared.state_dict().items()}
    convert(prepared)
    assert all(torch.equal(state[k], v) for k, v in prepared.state_dict().items())
    assert torch.equal(prepared(x), before)


def test_convert_any_state_gives_the_same_model() -> None:
    prepared, integer = converted(Residual)
    set_fake_quantize(prepared, FakeQuantState.CALIBRATION)
    assert torch.equal(convert(prepared)(images()[0]), integer(images()[0]))


def test_convert_qat_state_in_eval_is_accepted() -> None:
    model = make(Residual)
    model.qconfig = default_qat_8bit_fake_quant_qconfig
    qat = prepare_qat(model.train())
    qat(images()[0])
    assert type(convert(qat.eval())(images()[0])) is Tensor


def test_convert_inplace_and_remove_qconfig_do_what_they_say() -> None:
    prepared = eager(make(Residual), images())
    assert any("qconfig" in m.__dict__ for m in convert(prepared, remove_qconfig=False).modules())
    assert convert(prepared, inplace=True) is prepared
    assert list(named_fake_quants(prepared)) == []


def test_convert_high_precision_output_is_float_at_the_end() -> None:
    model = make(Residual)
    model.head.qconfig = get_default_qat_out_qconfig()
    prepared = eager(model, images())
    y, expected = convert(prepared)(images()[0]), prepared(images()[0])
    assert y.dtype == torch.float32
    assert len(y.unique()) > 5
    assert torch.allclose(y, expected, atol=0.02 * float(expected.detach().abs().max()))


def test_convert_shared_module_is_converted_once() -> None:
    from tests.models import SharedModule

    _, integer = converted(SharedModule)
    assert integer.first is integer.alias


def test_convert_path_never_calibrated_is_an_error_not_a_wrong_result() -> None:
    class Branch(Stubbed):
        def __init__(self) -> None:
            super().__init__()
            self.adds = False

        def body(self, x: Any) -> Any:
            return x + x if self.adds else x

    _, integer = converted(Branch)
    integer.adds = True
    with pytest.raises(UnsupportedOpError, match=r"add in .*never calibrated"):
        integer(images()[0])


@pytest.mark.parametrize("cls", EAGER)
def test_convert_traced_output_equals_untraced_bit_for_bit(cls: type[nn.Module]) -> None:
    _, integer = converted(cls)
    traced = torch.jit.trace(integer, images()[0], check_trace=False)
    for x in images():
        assert torch.equal(traced(x), integer(x))


@pytest.mark.parametrize("stage", ["prepared", "converted"])
@pytest.mark.parametrize("cls", [Residual, CalledTwice, InPlaceAdd])
def test_stage_survives_deepcopy_pickle_and_state_dict(stage: str, cls: type[nn.Module]) -> None:
    model = converted(cls)[stage == "converted"]
    x = images()[0]
    expected = model(x)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert torch.equal(loaded(x), expected)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    copied = copy.deepcopy(model)
    copied.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(copied(x), expected)


def test_convert_submodules_can_be_assembled_anew() -> None:
    _, integer = converted(Residual)

    class Deploy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.stem, self.dequant = integer.quant, integer.stem, DeQuantStub()

        def forward(self, x: Tensor) -> Any:
            return self.dequant(self.stem(self.quant(x)))

    deploy, x = Deploy(), images()[0]
    expected = integer.stem(integer.quant(x)).dequantize()
    assert torch.equal(deploy(x), expected)
    assert torch.equal(torch.jit.trace(deploy, x, check_trace=False)(x), expected)


@pytest.mark.parametrize("stage", ["prepared", "converted"])
def test_stage_forward_that_raises_leaves_no_mode_and_works_again(stage: str) -> None:
    model = converted(Failing)[stage == "converted"]
    x = images()[0]
    expected = model(x)
    for _ in range(2):
        model.inner.fails = True
        with pytest.raises(ValueError, match="planted"):
            model(x)
        assert _get_current_function_mode_stack() == []
        model.inner.fails = False
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_stage_interrupted_forward_does_not_spoil_the_next_one(error: type[BaseException]) -> None:
    model = converted(CalledTwice)[0]
    x = images()[0]
    expected = model(x)
    names = [n for n, _ in model.named_modules()]

    def interrupt(module: nn.Module, args: Any) -> None:
        raise error

    handle = model.inner.conv.register_forward_pre_hook(interrupt)
    with pytest.raises(error):
        model(x)
    handle.remove()
    assert torch.equal(model(x), expected)
    assert [n for n, _ in model.named_modules()] == names
    assert _get_current_function_mode_stack() == []


def test_stages_run_in_threads_without_mixing() -> None:
    prepared, integer = converted(Residual)
    batches = images(4)
    expected = [(prepared(x), integer(x)) for x in batches]
    results: dict[int, list[bool]] = {}

    def work(i: int) -> None:
        same = [
            torch.equal(prepared(batches[i]), expected[i][0]) and torch.equal(integer(batches[i]), expected[i][1])
            for _ in range(5)
        ]
        results[i] = [*same, _get_current_function_mode_stack() == []]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: [True] * 6 for i in range(4)}


def test_convert_empty_batch_passes() -> None:
    _, integer = converted(Residual)
    assert integer(torch.zeros(0, 3, 8, 8)).shape == (0, 5)


def test_convert_no_grad_inference_mode_and_grad_mode_agree() -> None:
    _, integer = converted(Residual)
    x = images()[0]
    with torch.inference_mode():
        first = integer(x)
    with torch.no_grad():
        assert torch.equal(integer(x), first)
    assert torch.equal(integer(x), first)
    assert not integer(x).requires_grad


def test_functions_outside_the_stubs_stay_float_in_every_stage() -> None:
    class Outside(Stubbed):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.conv, self.after = nn.AvgPool2d(2), nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1)

        def forward(self, x: Tensor) -> Any:
            return torch.sigmoid(self.after(super().forward(self.before(x))))

        def body(self, x: Any) -> Any:
            return self.conv(x)

    model = make(Outside)
    prepared = eager(model, images())
    for stage in (prepared, convert(prepared)):
        assert torch.allclose(stage(images()[0]), model(images()[0]), atol=0.01)


def test_calibration_with_nan_names_the_tensor() -> None:
    with pytest.raises(ModelError, match=r"quant\.activation_post_process: a tensor to be observed holds NaN"):
        eager(make(Residual), [images()[0] * float("nan")])


def test_function_with_integer_results_runs_once_in_a_converted_model() -> None:
    class Drawing(Stubbed):
        def body(self, x: Any) -> Any:
            return x, torch.multinomial(x, 4)

        def forward(self, x: Any) -> Any:
            y, drawn = self.body(self.quant(x))
            return self.dequant(y), drawn

    x = torch.rand(3, 8) + 0.1
    model = convert(eager(Drawing().eval(), [x]))
    torch.manual_seed(3)
    weights, drawn = model(x)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.multinomial(weights, 4))
