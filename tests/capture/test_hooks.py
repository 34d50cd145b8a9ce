"""Following one forward: every op call is seen, and the model is left as it was."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.capture.hooks import OpCall, Recorder, recording
from tests.capture import awkward_models as nets
from tests.capture.stages import assert_untouched, images, names, record


def test_recorder_shared_module_gives_a_row_per_call() -> None:
    assert names(nets.SharedConv(), images(1, 3, 4, 4)) == ["quant", "conv", "conv(1)", "conv(2)", "dequant"]


def test_recorder_recursion_counts_calls_in_order() -> None:
    assert names(nets.Recursive(), images(2, 4)) == ["fc", "add_0", "fc(1)", "add_0(1)", "fc(2)", "add_0(2)"]


def test_recorder_sees_keyword_inputs() -> None:
    x, offset = images(2, 4), images(2, 4, seed=1)
    calls = record(nets.Keywords(), x=x, offset=offset)
    assert [c.name for c in calls] == ["fc", "add_0"]
    assert torch.equal(calls[0].inputs[0], x)
    assert torch.equal(calls[1].inputs[1], offset)


def test_recorder_keyword_tensor_of_a_leaf_is_an_input() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(input=x)

    (call,) = record(Net(), images(2, 4))
    assert len(call.inputs) == 1
    torch.testing.assert_close(call.rerun([call.inputs[0]]), call.outputs[0])


def test_recorder_several_outputs_are_all_kept() -> None:
    calls = {c.name: c for c in record(nets.Chunks(), images(1, 3, 4, 4))}
    assert [tuple(t.shape) for t in calls["chunk_0"].outputs] == [(1, 2, 4, 4)] * 2
    assert calls["getitem_0"].producers == ("chunk_0",)
    assert calls["cat_0"].producers == ("getitem_0", "chunk_0")


def test_recorder_integer_and_bool_results_are_op_calls() -> None:
    calls = {c.name: c for c in record(nets.IntAndBool(), torch.randint(0, 10, (2, 5)))}
    assert set(calls) == {"gt_0", "unsqueeze_0", "embedding", "mul_0", "max_0", "fc"}
    assert [t.dtype for t in calls["max_0"].outputs] == [torch.float32, torch.int64]


def test_recorder_names_methods_of_float_functional() -> None:
    calls = {c.name: c for c in record(nets.Functional(), images(1, 3, 4, 4))}
    assert calls["sum"].method == "add"
    assert calls["skip"].is_pass_through
    assert calls["sum"].producers == ("conv", "quant")


def test_recorder_facts_and_factories_are_no_ops() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.dim() == 2
            assert x.is_floating_point()
            scale = torch.ones(x.shape[1], device=x.device, dtype=x.dtype)
            return x * scale * float(x.size(0))

    assert names(Net(), images(2, 3)) == ["mul_0", "mul_1"]


def test_recorder_functions_inside_leaf_modules_are_not_counted() -> None:
    net = nn.Sequential(nn.MultiheadAttention(4, 2, batch_first=True))
    calls: list[OpCall] = []
    x = images(1, 3, 4)
    with torch.no_grad(), recording(Recorder(net, calls.append)):
        net[0](x, x, x)
    assert [c.name for c in calls] == ["0"]


def test_recorder_extra_leaf_is_one_op() -> None:
    calls: list[OpCall] = []
    net = nets.SharedBlock()
    with torch.no_grad(), recording(Recorder(net, calls.append, extra_leaves=frozenset({"block"}))):
        net(images(1, 3, 4, 4))
    assert [c.name for c in calls] == ["quant", "stem", "block", "block(1)", "add_0", "dequant"]


def test_recorder_source_is_the_users_line() -> None:
    calls = {c.name: c for c in record(nets.SharedBlock(), images(1, 3, 4, 4))}
    lines = Path(nets.__file__).read_text("utf-8").splitlines()
    for name, text in [("block.add_0", "return self.conv(x) + x"), ("stem", "x = self.stem(x)")]:
        place, number, source = calls[name].source.split(":", 2)
        assert place.endswith("awkward_models.py")
        assert source.strip() == text == lines[int(number) - 1].strip()


def test_recorder_source_inside_sequential_is_the_line_that_calls_it() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(2, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    (call,) = record(Net(), images(1, 2))
    assert call.source.endswith("return self.layers(x)")


def test_recorder_known_op_looks_up_no_source() -> None:
    calls: list[OpCall] = []
    net = nets.SharedConv()
    with torch.no_grad(), recording(Recorder(net, calls.append, known={"conv(1)"})):
        net(images(1, 3, 4, 4))
    assert [bool(c.source) for c in calls] == [True, True, False, True, True]


def test_recorder_producers_of_an_earlier_forward_are_forgotten() -> None:
    net = nets.SharedConv()
    x = images(1, 3, 4, 4)
    with torch.no_grad(), recording(Recorder(net, lambda call: None)):
        kept = net(x)
    assert record(net, kept)[0].producers == (None,)


def test_recorder_in_place_results_are_outputs_of_what_wrote_them() -> None:
    net = nets.FloatInPlace()
    x = images(1, 3, 4, 4)
    with torch.no_grad():
        expected = net(x)
    calls = record(net, x)
    assert [c.name for c in calls] == [
        "conv", "view_0", "getitem_0", "add_0", "mul_0", "setitem_0", "relu_0", "mul_1", "sub_0",
    ]  # fmt: skip
    assert torch.equal(calls[-1].outputs[0], expected)
    by_name = {c.name: c for c in calls}
    assert bool((by_name["setitem_0"].outputs[0][:, 0] == 7).all())
    assert not bool((by_name["setitem_0"].inputs[0][:, 0] == 7).all())
    assert by_name["relu_0"].producers == ("setitem_0",)


@pytest.mark.parametrize("name", ["setitem_0", "relu_0", "mul_1", "sub_0", "add_0"])
def test_recorder_overwriting_op_can_run_again_on_its_saved_input(name: str) -> None:
    calls = {c.name: c for c in record(nets.FloatInPlace(), images(1, 3, 4, 4))}
    call = calls[name]
    assert call.overwrites
    assert torch.equal(call.rerun([t.clone() for t in call.inputs]), call.outputs[0])


@pytest.mark.parametrize(
    ("call", "overwrites"),
    [
        (lambda x: F.relu(x), False),
        (lambda x: F.relu(x, True), True),
        (lambda x: F.relu(x, inplace=True), True),
        (lambda x: x.add(1), False),
        (lambda x: x.add_(1), True),
        (lambda x: x.__iadd__(1), True),
        (lambda x: ~(x > 0), False),
        (lambda x: torch.abs(x, out=x), True),
        (lambda x: F.dropout(x, 0.5, False, True), True),
        (lambda x: nn.ReLU(inplace=True)(x), True),
    ],
)
def test_recorder_knows_what_overwrites(call: Any, overwrites: bool) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return call(x)

    assert any(c.overwrites for c in record(Net(), images(2, 2))) is overwrites


class _Planted(Exception):
    pass


class _RaisingAt(torch.overrides.TorchFunctionMode):
    """Raises at the n-th torch function, wherever it is called."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.left = index

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left < 0:
            raise _Planted
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("net", [nets.SharedBlock, nets.ConvBnRelu, nets.InPlace, nets.Recursive, nets.FloatInPlace])
def test_recording_forward_that_raises_at_any_op_leaves_nothing_behind(net: Any) -> None:
    model = net()
    model.train()
    next(model.children()).eval()
    x = images(2, 4) if net is nets.Recursive else images(2, 3, 4, 4)
    model.eval() if net is nets.ConvBnRelu else None
    for index in itertools.count():
        recorder = Recorder(model, lambda call: None)

        def run(recorder: Recorder = recorder, index: int = index) -> bool:
            with torch.no_grad(), _RaisingAt(index):
                try:
                    with recording(recorder):
                        model(x)
                except _Planted:
                    return True
            return False

        if not assert_untouched(model, run):
            break
        assert index < 200
    assert index >= 5


def test_recording_op_whose_error_the_model_catches_is_skipped() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.fits = nn.Linear(3, 3), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.narrow(x)
            except RuntimeError:
                return self.fits(x) + 1

    assert names(Net(), images(2, 4)) == ["fits", "add_0"]


def test_recording_forward_of_another_model_is_not_seen() -> None:
    first, second = nets.SharedConv(), nets.SharedConv()
    x = images(1, 3, 4, 4)
    calls: list[str] = []
    with torch.no_grad(), recording(Recorder(first, lambda call: calls.append(call.name))):
        second(x)
    assert calls == []
