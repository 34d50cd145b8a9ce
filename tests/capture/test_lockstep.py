"""Numbers of a pair of stages against brute force: store everything, compare afterwards."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.capture.lockstep import run_pair
from profiler.capture.stage import Stage, real_values
from profiler.errors import DataError, ModelError, PrepareError
from profiler.quant.batches import Batch
from profiler.quant.ops.gemm import FakeQuantGemm
from tests.capture import awkward_models as nets
from tests.capture.stages import assert_untouched, calibrated, compared, images, pair, record, row, stages

NETS = [nets.SharedBlock, nets.PlainFunctionsFirst, nets.Functional, nets.Chunks, nets.ConvBnRelu, nets.InPlace]


def outputs(model: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    """Outputs of every op call, in real values, all inputs behind each other."""
    runs = [{c.name: torch.cat([t.flatten() for t in c.outputs]) for c in record(model, x)} for x in inputs]
    return {name: torch.cat([run[name] for run in runs]).double() for name in runs[0]}


def assert_stats(stats: Any, reference: Tensor, test: Tensor) -> None:
    error = test - reference
    assert stats.num_values == reference.numel()
    assert stats.mse == pytest.approx(float((error**2).mean()), rel=1e-4, abs=1e-12)
    assert stats.l1 == pytest.approx(float(error.abs().mean()), rel=1e-4, abs=1e-9)
    assert stats.atol == pytest.approx(float(error.abs().max()), rel=1e-5, abs=1e-9)
    cosine = float((reference * test).sum() / (reference.norm() * test.norm()))
    assert stats.cosine == pytest.approx(cosine, abs=1e-6)
    if float(error.abs().max()) > 0:
        sqnr = 10 * math.log10(float((reference**2).sum() / (error**2).sum()))
        assert stats.sqnr_db == pytest.approx(sqnr, abs=1e-3)
    else:
        assert stats.sqnr_db == math.inf


@pytest.mark.parametrize("front_end", ["eager", "fx"])
@pytest.mark.parametrize("net", NETS)
def test_accumulated_error_equals_brute_force_over_two_batches(net: Any, front_end: str) -> None:
    batches = [images(2, 3, 6, 6), images(3, 3, 6, 6, seed=1)]
    reference, calib, quantized = stages(net().eval(), front_end, *batches)
    for first, second, mode in ((reference, calib, "FvsQ"), (calib, quantized, "QvsQ")):
        expected, actual = outputs(first, *batches), outputs(second, *batches)
        comparison = compared(first, second, *batches, mode=mode)
        num_checked = 0
        for layer in comparison.layers:
            if layer.status != "compared" or layer.is_output:
                continue
            base = layer.name.partition("[")[0]
            fused = layer.fused_names if mode == "FvsQ" else ()
            name = fused[-1] if fused else base
            if name in expected and expected[name].shape == actual[base].shape:
                assert_stats(layer.accumulated, expected[name], actual[base])
                num_checked += 1
        assert num_checked >= 4
        (output,) = [layer for layer in comparison.layers if layer.is_output]
        with torch.no_grad():
            both = [torch.cat([m(x).double().flatten() for x in batches]) for m in (first, second)]
        assert_stats(output.accumulated, *both)


def test_fused_group_is_compared_at_its_end() -> None:
    x = images(4, 3, 6, 6)
    reference, calib, _ = stages(nets.ConvBnRelu().eval(), "fx", x)
    layer = row(compared(reference, calib, x), "conv")
    expected = outputs(reference, x)
    assert layer.fused_names == ("conv", "bn", "relu")
    assert_stats(layer.accumulated, expected["relu"], outputs(calib, x)["conv"])
    at_conv = float(((outputs(calib, x)["conv"] - expected["conv"]) ** 2).mean())
    assert at_conv > 100 * layer.accumulated.mse
    assert layer.injected.sqnr_db > 25


def test_injected_error_is_that_of_the_reference_op_on_the_test_input() -> None:
    x = images(4, 3, 6, 6)
    reference, calib, _ = stages(nets.SharedBlock().eval(), "fx", x)
    calls = {c.name: c for c in record(calib, x)}
    comparison = compared(reference, calib, x)
    for name, op in [("block.conv(1)", reference.block.conv), ("stem", reference.stem), ("block.add_0(1)", torch.add)]:
        inputs = [real_values(t) for t in calls[name].inputs]
        with torch.no_grad():
            again = op(*inputs).double().flatten()
        assert_stats(row(comparison, name).injected, again, calls[name].outputs[0].double().flatten())


def test_injected_and_inherited_add_up_to_accumulated() -> None:
    """Inherited: the reference op on test inputs minus on its own. The sum must be the whole error, value by value."""
    x = images(4, 3, 6, 6)
    reference, calib, _ = stages(nets.SharedBlock().eval(), "eager", x)
    expected, actual = ({c.name: c for c in record(m, x)} for m in (reference, calib))
    for name in ("block.conv", "block.add_0", "block.conv(1)"):
        ref, test = expected[name], actual[name]
        with torch.no_grad():
            again = ref.rerun([real_values(t) for t in test.inputs]).double()
        value = test.outputs[0].double()
        injected, inherited = value - again, again - ref.outputs[0].double()
        whole = value - ref.outputs[0].double()
        assert float((injected + inherited - whole).abs().max()) < 1e-6
        layer = row(compared(reference, calib, x), name)
        assert layer.injected.mse == pytest.approx(float((injected**2).mean()), rel=1e-4)
        assert layer.accumulated.mse == pytest.approx(float((whole**2).mean()), rel=1e-4)


@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_one_corrupted_op_has_the_injected_error_its_followers_have_not(front_end: str) -> None:
    x = images(4, 3, 6, 6)
    model = nets.Nested().eval()
    calib = calibrated(model, front_end, x)
    owner = "stages.0.1.conv" if front_end == "eager" else "stages.0.1._generated_add_0"
    bad = calib.get_submodule(owner)  # in fx the conv is fused into the add behind it
    assert isinstance(bad, FakeQuantGemm)
    with torch.no_grad():
        bad.weight.mul_(2)
    bad.weight_fake_quant.set_qparams(bad.weight_fake_quant.scale * 2)
    rows = [r for r in compared(model, calib, x).layers if r.injected is not None]
    by_injected = sorted(rows, key=lambda r: r.injected.sqnr_db)
    assert by_injected[0].name == owner.replace("_generated_", "")
    assert by_injected[0].injected.sqnr_db < 20 < by_injected[1].injected.sqnr_db
    after = [r.accumulated.sqnr_db for r in rows if r.name in ("stages.1.conv", "stages.1.add_0", "add_1")]
    assert max(after) < 25


def test_model_against_its_copy_has_no_error_at_all() -> None:
    model = nets.FloatInPlace()
    comparison = compared(model, copy.deepcopy(model), images(2, 3, 4, 4), images(2, 3, 4, 4, seed=1))
    assert {r.name for r in comparison.layers} >= {"conv", "setitem_0", "relu_0", "sub_0", "model output"}
    for layer in comparison.layers:
        assert layer.status == "compared"
        assert layer.accumulated.atol == 0
        if not layer.is_output:
            assert layer.injected.atol == 0


@pytest.mark.parametrize("net", [nets.FloatInPlace, nets.InPlace])
def test_in_place_ops_do_not_change_what_was_saved_of_the_reference(net: Any) -> None:
    x = images(2, 3, 4, 4)
    model = net().eval()
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled.conv.weight.mul_(1.5)
    expected, actual = outputs(model, x), outputs(scaled, x)
    comparison = compared(model, scaled, x)
    for name in expected:
        assert_stats(row(comparison, name).accumulated, expected[name], actual[name])


def test_running_an_overwriting_reference_again_leaves_the_test_model_alone() -> None:
    x = images(2, 3, 6, 6)
    model = nets.InPlace().eval()
    for front_end in ("eager", "fx"):
        calib = calibrated(model, front_end, x)
        with torch.no_grad():
            alone = calib(x)
        (output,) = [r for r in compared(model, calib, x).layers if r.is_output]
        with torch.no_grad():
            assert_stats(output.accumulated, model(x).double().flatten(), alone.double().flatten())


def test_control_flow_that_differs_per_batch_joins_by_name() -> None:
    positive, negative = images(2, 3, 4, 4).abs(), -images(2, 3, 4, 4).abs()
    model = nets.Branching().eval()
    comparison = compared(model, calibrated(model, "eager", positive, negative), positive, negative, positive)
    values = {r.name: r.accumulated.num_values for r in comparison.layers if r.accumulated}
    assert values["first"] == 2 * positive.numel()
    assert values["second"] == negative.numel()
    assert row(comparison, "never").status == "uncalled"
    called = {c.name: c.count for c in comparison.test.called}
    assert (called["first"], called["second"], called["never"]) == (1, 1, 0)
    assert row(comparison, "second").source


@pytest.mark.parametrize(
    ("kind", "count"),
    [("tensor", 1), ("tuple", 2), ("nested", 2), ("dict", 2), ("namedtuple", 2), ("dataclass", 2), ("none", 0)],
)
def test_outputs_of_any_kind_are_compared(kind: str, count: int) -> None:
    model = nets.Outputs(kind)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.fc.weight.mul_(1.1)
    comparison = compared(model, other, images(2, 4))
    rows = [r for r in comparison.layers if r.is_output]
    assert len(rows) == count == len(comparison.outputs)
    if count:
        assert rows[0].accumulated.sqnr_db < 40
        assert rows[0].inputs == ("fc",)
    if count > 1:
        assert rows[1].accumulated.sqnr_db == math.inf
        assert rows[1].inputs == ("mul_0",)


def test_integer_outputs_are_counted_with_the_reason_and_float_ones_beside_them_compared() -> None:
    model = nets.IntAndBool()
    comparison = compared(model, copy.deepcopy(model), torch.randint(0, 10, (2, 5)))
    assert row(comparison, "gt_0").status == "unsupported"
    assert row(comparison, "max_0").status == "compared"
    assert comparison.coverage.executed == 6
    assert comparison.coverage.compared == 4
    assert comparison.coverage.reasons == {"integer or bool output: counted, not compared": 2}


@pytest.mark.parametrize("front_end", ["eager", "fx"])
@pytest.mark.parametrize("net", NETS)
def test_coverage_adds_up(net: Any, front_end: str) -> None:
    x = images(2, 3, 6, 6)
    reference, calib, _ = stages(net().eval(), front_end, x)
    comparison = compared(reference, calib, x)
    coverage = comparison.coverage
    assert coverage.executed == sum(not call.is_pass_through for call in record(calib, x))
    assert coverage.executed == coverage.compared + sum(coverage.reasons.values())
    assert all(coverage.reasons)


def test_unmatched_and_mismatched_ops_say_why() -> None:
    class Other(nets.SharedConv):
        def body(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x)[:, :, :2]) * 2

    model = nets.SharedConv()
    other = Other()
    comparison = compared(model, other, images(1, 3, 4, 4))
    assert row(comparison, "mul_0").status == "unmatched"
    assert "no op of this name" in row(comparison, "mul_0").reason
    mismatch = row(comparison, "conv(1)")
    assert mismatch.status == "shape_mismatch"
    assert "(1, 3, 4, 4)" in mismatch.reason
    assert "(1, 3, 2, 4)" in mismatch.reason
    assert mismatch.accumulated is None


def test_op_that_fails_to_match_in_one_batch_keeps_the_numbers_of_the_others() -> None:
    class Growing(nn.Module):
        def __init__(self, limit: float) -> None:
            super().__init__()
            self.limit = limit

        def forward(self, x: Tensor) -> Tensor:
            return (x[:1] if float(x.sum()) > self.limit else x) * 2

    small, large = torch.ones(2, 2), 10 * torch.ones(2, 2)
    layer = row(compared(Growing(20), Growing(1000), small, large), "mul_0")
    assert layer.status == "compared"
    assert layer.accumulated.num_values == 4
    assert "mismatch shape" in layer.reason


def test_worst_batch_is_known() -> None:
    x = images(2, 3, 4, 4)
    model = nets.SharedConv().eval()
    run = pair(model, calibrated(model, "fx", x), x, 50 * x, x)
    assert max(range(3), key=run.batch_output_error.__getitem__) == 1


class Failing(nn.Module):
    """Raises on batches of one size."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.fc, self.size = nn.Linear(4, 4), size

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        if x.shape[0] == self.size:
            raise RuntimeError("planted")
        return x + 1


@pytest.mark.parametrize(
    ("reference", "test", "error"), [(3, 0, DataError), (2, 0, ModelError), (0, 2, PrepareError), (0, 3, PrepareError)]
)
def test_forward_that_raises_names_stage_batch_and_op(reference: int, test: int, error: type[Exception]) -> None:
    first, second = Failing(reference), Failing(test)
    second.fc.eval()
    index, stage = (reference, "float") if reference else (test, "calib")

    def run() -> None:
        with pytest.raises(error) as raised:
            pair(first, second, images(3, 4), images(2, 4))
        text = str(raised.value)
        assert f"{stage} model, batch {0 if index == 3 else 1} (({index}, 4) torch.float32)" in text
        assert "RuntimeError: planted" in text
        assert "the last op that began was fc" in text
        assert "batch_process_func" in text or "qconfig = None" in text

    assert_untouched(first, lambda: assert_untouched(second, run))


def test_error_of_our_own_measuring_is_not_blamed_on_the_data() -> None:
    class Broken(Stage):
        def add(self, call: Any) -> None:
            raise ZeroDivisionError("ours")

    model = nets.SharedConv()
    with pytest.raises(ZeroDivisionError, match="ours"):
        run_pair(Broken("float", model), Stage("calib", model), [Batch((images(1, 3, 4, 4),))])


def test_progress_is_told_per_batch() -> None:
    told: list[tuple[str, int, int]] = []
    model = nets.SharedConv()
    batches = [Batch((images(1, 3, 4, 4),))] * 2
    run_pair(Stage("float", model), Stage("calib", model), batches, progress=lambda *a: told.append(a), step="compare")
    assert told == [("compare", 0, 2), ("compare", 1, 2), ("compare", 2, 2)]
