"""freeze_part: a part of a prepared model stays as it is, whatever happens to the rest."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from profiler.capture.state_facts import state_record
from profiler.errors import ConfigError, NotCalibratedError, PrepareError, StateError
from profiler.quant import (
    FakeQuantState,
    HistogramObserver,
    QATMode,
    QConfig,
    default_calib_8bit_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
    default_qat_8bit_lsq_quant_qconfig,
    freeze_part,
    get_default_qconfig,
    prepare_qat,
    reset_part,
    set_fake_quantize,
    set_qat_mode,
    unfreeze_part,
)
from profiler.quant.states import journal_of, named_fake_quants
from tests.quant.stages import calibrate
from tests.quant.two_heads import (
    CONVERT,
    PREPARE,
    TwoHeads,
    _with,
    assert_same,
    batches,
    calibrated,
    ops_in,
    train_steps,
    trainable,
    two_heads,
    values,
)


@pytest.fixture(params=PREPARE)
def front_end(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("qconfig", [default_qat_8bit_fake_quant_qconfig, default_qat_8bit_lsq_quant_qconfig])
def test_r93_frozen_part_is_unchanged_by_a_train_step_also_after_train(front_end: str, qconfig: QConfig) -> None:
    model = trainable(front_end, qconfig)
    freeze_part(model, "first")
    frozen, free = values(model, "first"), values(model, "second")

    model.train()
    train_steps(model)
    model.eval()
    model.train()
    set_fake_quantize(model, FakeQuantState.QAT)
    train_steps(model)

    assert_same(frozen, model, "first")
    now = values(model, "second")
    moved = {name for name, tensor in free.items() if not torch.equal(tensor, now[name])}
    assert {"conv.weight", "fc.weight", "fc.activation_post_process.scale"} <= moved
    assert not any(m.training for m in model.get_submodule("first").modules())
    assert not any(p.requires_grad for p in model.get_submodule("first").parameters())


def test_r93_frozen_part_keeps_its_live_norm_statistics(front_end: str) -> None:
    set_qat_mode(QATMode.WithBN)
    try:
        model = trainable(front_end)
    finally:
        set_qat_mode(QATMode.FuseBN)
    assert any("running_mean" in name for name in values(model, "first"))
    freeze_part(model, "first")
    frozen, norms = values(model, "first"), {n: t for n, t in values(model, "second").items() if "running" in n}

    model.train()
    train_steps(model)

    assert_same(frozen, model, "first")
    assert norms
    assert all(not torch.equal(tensor, values(model, "second")[name]) for name, tensor in norms.items())


def test_r93_frozen_part_is_unchanged_by_a_calibration_of_the_rest(front_end: str) -> None:
    model = calibrated(front_end)
    freeze_part(model, "first")
    frozen, free = values(model, "first"), values(model, "second")

    calibrate(model, batches(20.0, 8))

    assert_same(frozen, model, "first")
    assert not torch.equal(
        free["fc.activation_post_process.scale"], values(model, "second")["fc.activation_post_process.scale"]
    )


def test_frozen_part_rounds_in_every_state_but_float(front_end: str) -> None:
    model = calibrated(front_end)
    freeze_part(model, "first")

    def flags() -> set[tuple[bool, bool, bool]]:
        return {(f.is_observer_on, f.is_fake_quant_on, f.training) for _, f in named_fake_quants(model.first)}  # type: ignore[arg-type]

    for state in (FakeQuantState.CALIBRATION, FakeQuantState.VALIDATION):
        set_fake_quantize(model, state)
        assert flags() == {(False, True, False)}
    set_fake_quantize(model, FakeQuantState._FLOAT)
    assert flags() == {(False, False, False)}
    model.train()
    set_fake_quantize(model, FakeQuantState.QAT)
    assert flags() == {(False, True, False)}


def test_frozen_part_passes_gradients_on(front_end: str) -> None:
    model = trainable(front_end)
    freeze_part(model, ["first", "second"])
    model.train()
    model(batches()[0]).square().sum().backward()
    stem = next(p for n, p in model.named_parameters() if n.startswith("stem") and n.endswith("weight"))
    assert stem.grad is not None
    assert bool(stem.grad.any())


def test_freeze_drops_gradients_that_an_optimizer_would_still_use(front_end: str) -> None:
    model = trainable(front_end)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(batches()[0]).square().sum().backward()
    freeze_part(model, "first")
    frozen = values(model, "first")
    optimizer.step()
    assert_same(frozen, model, "first")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copy_of_a_model_keeps_its_part_frozen(front_end: str, copied: Callable[[nn.Module], nn.Module]) -> None:
    model = trainable(front_end)
    freeze_part(model, "first")
    twin = copied(model)
    frozen = values(twin, "first")

    twin.train()
    train_steps(twin)

    assert_same(frozen, twin, "first")
    assert_same(frozen, model, "first")
    assert not any(m.training for m in ops_in(twin, "first"))
    unfreeze_part(twin, "first")
    assert {m.training for m in ops_in(twin, "first")} == {True}
    assert not any(m.training for m in ops_in(model, "first"))


def test_load_state_dict_fills_a_frozen_part_and_leaves_it_frozen(front_end: str) -> None:
    model, other = calibrated(front_end), calibrated(front_end)
    calibrate(other, batches(9.0, 8))
    other(batches()[0])  # in eager the norm is not fused: its scale follows its gain at the next forward
    freeze_part(model, "first")

    model.load_state_dict(other.state_dict(), assign=True)

    assert_same(values(other, "first"), model, "first")
    calibrate(model, batches(30.0, 8))
    assert_same(values(other, "first"), model, "first")
    assert not any(p.requires_grad for p in model.get_submodule("first").parameters())


def test_unfreeze_gives_back_what_was(front_end: str) -> None:
    model = trainable(front_end)
    model.get_submodule("first.fc").bias.requires_grad_(False)  # type: ignore[union-attr]
    required = {n: p.requires_grad for n, p in model.named_parameters()}
    freeze_part(model, "first")
    freeze_part(model, "first.fc")  # a second time changes nothing
    model.train()
    unfreeze_part(model, "first")

    assert {n: p.requires_grad for n, p in model.named_parameters()} == required
    assert all(m.training for m in model.modules())
    assert {(f.is_observer_on, f.is_fake_quant_on) for _, f in named_fake_quants(model)} == {(True, True)}
    before = values(model, "first")
    train_steps(model)
    assert not torch.equal(before["fc.weight"], values(model, "first")["fc.weight"])


def test_unfreeze_of_some_of_a_frozen_part_sets_that_free_only(front_end: str) -> None:
    model = trainable(front_end)
    freeze_part(model, "first")
    unfreeze_part(model, "first.fc")
    conv, fc = values(model, "first.conv"), values(model, "first.fc")

    model.train()
    train_steps(model)

    assert_same(conv, model, "first.conv")
    assert not torch.equal(fc["weight"], values(model, "first.fc")["weight"])
    assert model.get_submodule("first.fc").training


def test_a_function_is_frozen_by_its_op_name(front_end: str) -> None:
    model = calibrated(front_end)
    freeze_part(model, "first.add_0")
    assert {n for n, f in named_fake_quants(model) if f.is_frozen} == {"first._generated_add_0.activation_post_process"}


def test_a_part_that_is_not_there_raises_with_the_nearest_names(front_end: str) -> None:
    model = calibrated(front_end)
    for call in (freeze_part, unfreeze_part, reset_part):
        with pytest.raises(
            ConfigError, match=rf"{call.__name__}: nothing matches 'fist'; the nearest names are .*first"
        ):
            call(model, ["second", "fist"])
    assert not any(f.is_frozen for _, f in named_fake_quants(model))


@pytest.mark.parametrize("nothing", ["", [], ["first", ""]])
def test_the_whole_model_is_not_a_part(front_end: str, nothing: str | list[str]) -> None:
    with pytest.raises(ConfigError, match="expected the path of a part, such as"):
        freeze_part(calibrated(front_end), nothing)


def test_a_float_model_is_refused() -> None:
    with pytest.raises(PrepareError, match="freeze_part: TwoHeads has no fake quants"):
        freeze_part(two_heads(), "first")


def test_a_part_without_scales_is_refused_and_named(front_end: str) -> None:
    model = PREPARE[front_end](two_heads(), default_calib_8bit_fake_quant_qconfig)
    with pytest.raises(NotCalibratedError, match=r"freeze_part: \d+ activations have no scale to keep: first\."):
        freeze_part(model, "first")
    assert not any(f.is_frozen for _, f in named_fake_quants(model))


def test_calibrating_what_is_frozen_as_a_whole_is_an_error(front_end: str) -> None:
    model = calibrated(front_end)
    freeze_part(model, [name for name, _ in model.named_children()])
    with pytest.raises(StateError, match="all fake quants are frozen; call unfreeze_part first"):
        set_fake_quantize(model, FakeQuantState.CALIBRATION)
    set_fake_quantize(model, FakeQuantState.VALIDATION)
    unfreeze_part(model, "first")
    set_fake_quantize(model, FakeQuantState.CALIBRATION)


def test_new_scales_from_histograms_leave_a_frozen_part() -> None:
    model = calibrated("fx", get_default_qconfig(activation_observer="histogram"))
    freeze_part(model, "first")
    frozen, free = values(model, "first"), values(model, "second")

    HistogramObserver.reset_scale(model, "percentile", {"percentile": 0.9})

    assert_same(frozen, model, "first")
    name = "fc.activation_post_process.scale"
    assert not torch.equal(free[name], values(model, "second")[name])


def test_converted_model_of_a_frozen_one_computes_the_same_and_has_its_own_train(front_end: str) -> None:
    convert_it, model = CONVERT[front_end], calibrated(front_end)
    plain = convert_it(model)(batches()[0])
    freeze_part(model, "first")

    converted = convert_it(model)

    assert torch.equal(converted(batches()[0]), plain)
    fc = converted.get_submodule("first.fc")
    assert fc.train() is fc
    traced = torch.jit.trace(converted, batches()[0])  # type: ignore[no-untyped-call]
    assert torch.equal(traced(batches()[0]), plain)


def test_journal_notes_the_part_and_the_state_facts_leave_it_out(front_end: str) -> None:
    model = calibrated(front_end)
    freeze_part(model, ["first", "stem"])
    set_fake_quantize(model, FakeQuantState.CALIBRATION)
    unfreeze_part(model, "stem")
    journal, facts = journal_of(model), state_record(model)
    assert journal is not None
    assert journal.lines()[2:5] == (
        "freeze_part(first, stem), model.training = False",
        "set_fake_quantize(CALIBRATION), model.training = False",
        "unfreeze_part(stem), model.training = False",
    )
    assert facts is not None
    assert [state for state, _ in facts.events] == ["CALIBRATION", "VALIDATION", "CALIBRATION"]
    assert facts.num_fake_quant_on == 0  # of those that are not frozen: the model is evaluated in float


def test_a_new_function_in_a_model_with_a_frozen_part_follows_the_rest() -> None:
    class Branching(TwoHeads):
        is_long = False

        def body(self, x: Tensor) -> Tensor:
            y = super().body(x)
            return y + y if self.is_long else y

    torch.manual_seed(0)
    model = calibrate(prepare_qat(_with(Branching().eval(), default_calib_8bit_fake_quant_qconfig)), batches())
    freeze_part(model, ["quant", "stem", "first"])
    set_fake_quantize(model, FakeQuantState.CALIBRATION)
    model.is_long = True
    model(batches()[0])
    late = model.get_submodule("_generated_add_0").activation_post_process
    assert late.is_calibrated
    assert not late.is_frozen
