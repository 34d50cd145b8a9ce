"""Facts about a stage: statistic rows, called counts, qconfig tables, weights, unfused groups."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.capture.structure import weight_params
from profiler.quant import (
    DeQuantStub,
    FakeQuantState,
    QuantStub,
    convert,
    default_calib_16bit_fake_quant_qconfig,
    fuse_modules,
    prepare_qat,
    set_fake_quantize,
    set_march,
)
from profiler.quant.qconfig import QConfig, get_default_qconfig, high_precision_output
from profiler.records import Comparison, TensorRecord
from tests.capture import awkward_models as nets
from tests.capture.stages import QCONFIG, calibrated, compared, images, pair, stages


def tensor(comparison: Comparison, stage: str, name: str, attr: str) -> TensorRecord:
    model = comparison.reference if stage == "reference" else comparison.test
    found = [t for t in model.tensors if t.name == name and t.attr == attr]
    assert len(found) == 1, [(t.name, t.attr) for t in model.tensors]
    return found[0]


def two(model: nn.Module, x: Tensor, front_end: str = "fx") -> Comparison:
    return compared(model, calibrated(model, front_end, x), x)


def test_statistic_rows_hold_inputs_outputs_weight_and_bias() -> None:
    model, x = nets.Functional().eval(), images(2, 3, 4, 4)
    comparison = two(model, x, "eager")
    attributes = [(t.name, t.attr) for t in comparison.reference.tensors]
    assert attributes == [
        ("quant", "input"), ("quant", "output"), ("conv", "input"), ("conv", "output"), ("conv", "weight"),
        ("conv", "bias"), ("skip(I)", "input"), ("skip(I)", "output"), ("sum[add]", "input-0"), ("sum[add]", "input-1"),
        ("sum[add]", "output"), ("dequant", "input"), ("dequant", "output"),
    ]  # fmt: skip
    conv = tensor(comparison, "reference", "conv", "output")
    with torch.no_grad():
        y = model.conv(x)
    assert (conv.shape, conv.dtype, conv.scale) == ((2, 3, 4, 4), "torch.float32", ())
    assert conv.stats.minimum == pytest.approx(float(y.min()))
    assert conv.stats.maximum == pytest.approx(float(y.max()))
    assert conv.stats.mean == pytest.approx(float(y.mean()), abs=1e-6)
    assert conv.stats.var == pytest.approx(float(y.var(correction=0)), rel=1e-5)
    weight = tensor(comparison, "reference", "conv", "weight")
    assert weight.stats.maximum == pytest.approx(float(model.conv.weight.max()))


def test_statistic_rows_of_a_prepared_model_carry_scales() -> None:
    model, x = nets.SharedConv().eval(), images(2, 3, 4, 4)
    calib = calibrated(model, "eager", x)
    comparison = compared(model, calib, x)
    row = tensor(comparison, "test", "conv(1)", "output")
    assert row.dtype == "qint8"
    assert row.scale == (pytest.approx(float(calib.conv.activation_post_process.scale)),)
    weight = tensor(comparison, "test", "conv", "weight")
    assert (weight.dtype, weight.ch_axis, len(weight.scale)) == ("qint8", 0, 3)
    assert not [t for t in comparison.test.tensors if t.name == "conv(1)" and t.attr == "weight"]


def test_statistic_rows_of_a_converted_model_are_real_values() -> None:
    model, x = nets.SharedConv().eval(), images(2, 3, 4, 4)
    _, calib, quantized = stages(model, "eager", x)
    comparison = compared(calib, quantized, x, mode="QvsQ")
    for name, attr in [("conv", "output"), ("conv", "weight"), ("quant", "output"), ("dequant", "input")]:
        before, after = (tensor(comparison, stage, name, attr) for stage in ("reference", "test"))
        assert after.stats.maximum == pytest.approx(before.stats.maximum, rel=0.02)
        assert after.dtype == "qint8"


def test_statistics_of_integer_tensors_and_single_values() -> None:
    model = nets.IntAndBool()
    comparison = compared(model, copy.deepcopy(model), torch.randint(1, 9, (2, 5)))
    row = tensor(comparison, "reference", "embedding", "input")
    assert row.dtype == "torch.int64"
    assert 1 <= row.stats.minimum <= row.stats.maximum <= 8


def test_called_counts_unused_shared_and_alias() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)
            self.alias = self.used
            self.block = nn.Sequential(nn.Linear(2, 2), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.block(self.block(self.alias(x)))

    model = Net()
    comparison = compared(model, copy.deepcopy(model), images(1, 2))
    counts = {c.name: (c.count, c.alias_of) for c in comparison.reference.called}
    assert counts == {
        "used": (1, ""), "unused": (0, ""), "alias": (0, "used"), "block.0": (2, ""), "block.1": (2, ""),
    }  # fmt: skip
    assert [r.name for r in comparison.layers if r.status == "uncalled"] == ["unused"]


def test_called_counts_hold_no_observers_and_nothing_inside_ops() -> None:
    model, x = nets.SharedBlock().eval(), images(1, 3, 4, 4)
    calib = calibrated(model, "eager", x)
    counts = {c.name: c.count for c in compared(model, calib, x).test.called}
    assert counts == {"quant": 1, "dequant": 1, "stem": 1, "block.conv": 2, "block.add_0": 2, "add_0": 1}
    attention = nn.Sequential(nn.MultiheadAttention(4, 2))
    assert [c.name for c in compared(nn.Sequential(nn.Linear(4, 4)), attention[:0], images(2, 4)).test.called] == []


def test_called_counts_of_an_extra_leaf_count_it_and_not_its_parts() -> None:
    from profiler.capture.lockstep import run_pair
    from profiler.capture.stage import Stage
    from profiler.capture.structure import called_counts
    from profiler.quant.batches import Batch

    model = nets.SharedBlock()
    stage = Stage("calib", model)
    run_pair(
        Stage("float", copy.deepcopy(model)), stage, [Batch((images(1, 3, 4, 4),))], extra_leaves=frozenset({"block"})
    )
    assert {c.name: c.count for c in called_counts(stage)} == {"quant": 1, "dequant": 1, "stem": 1, "block": 2}


class Configured(nets.Stubbed):
    """Fixed-scale stub, an int16 op, an op with int16 weights, an unquantized last conv."""

    def __init__(self) -> None:
        super().__init__()
        self.quant = QuantStub(scale=1 / 128)
        self.first, self.wide, self.heavy, self.last = (nn.Conv2d(3, 3, 1) for _ in range(4))

    def body(self, x: Tensor) -> Tensor:
        return self.last(self.heavy(self.wide(self.first(x))).flip(3))


def test_qconfig_tables_say_what_is_there() -> None:
    model, x = Configured().eval(), images(2, 3, 4, 4)
    prepared = copy.deepcopy(model)
    prepared.qconfig = QCONFIG
    prepared.wide.qconfig = default_calib_16bit_fake_quant_qconfig
    prepared.heavy.qconfig = get_default_qconfig(weight_qkwargs={"dtype": "qint16"})
    prepared.last.qconfig = high_precision_output(QCONFIG)
    prepared = prepare_qat(prepared).eval()
    set_fake_quantize(prepared, FakeQuantState.CALIBRATION)
    prepared(x)
    prepared.eval()
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)
    check = compared(model, prepared, x).qconfig
    messages = {(m.name, m.message) for m in check.messages}
    assert messages == {
        ("quant", "Fixed scale 0.0078125"),
        ("wide", "input dtype qint8 is not same with out dtype qint16"),
        ("heavy", "qint16 weight"),
        ("heavy", "input dtype qint16 is not same with out dtype qint8"),
        ("last", "activation is None (output layer?)"),
    }
    outputs = {row.name: row for row in check.outputs}
    assert (outputs["last"].out_dtype, outputs["last"].ch_axis) == ("None", "activation = None")
    assert (outputs["wide"].input_dtypes, outputs["wide"].out_dtype) == (("qint8",), "qint16")
    assert outputs["flip_0"].ch_axis == "qconfig = None"
    assert outputs["first"].ch_axis == "-1"
    assert outputs["quant"].observer == "FixedScaleObserver(scale=0.0078125)"
    assert "averaging_constant=" in outputs["first"].observer
    assert all("averaging_constant=" in row.observer for row in check.weights)
    weights = {row.name: (row.weight_dtype, row.ch_axis) for row in check.weights}
    assert weights == {"first": ("qint8", 0), "wide": ("qint8", 0), "heavy": ("qint16", 0), "last": ("qint8", 0)}


def test_qconfig_table_of_qvsq_is_that_of_the_qat_model() -> None:
    x = images(2, 3, 4, 4)
    _, calib, quantized = stages(nets.SharedConv().eval(), "eager", x)
    check = compared(calib, quantized, x, mode="QvsQ").qconfig
    assert [row.name for row in check.outputs] == ["quant", "conv", "conv(1)", "conv(2)", "dequant"]
    assert all(row.observer for row in check.outputs if row.name != "dequant")


@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_weight_records_against_the_float_weight_with_its_norm_folded(front_end: str) -> None:
    model, x = nets.ConvBnRelu().eval(), images(2, 3, 6, 6)
    comparison = two(model, x, front_end)
    records = {r.name: r for r in comparison.weights}
    conv = records["conv.weight"]
    weight = model.conv.weight
    if front_end == "fx":
        gain = model.bn.weight / torch.sqrt(model.bn.running_var + model.bn.eps)
        weight = weight * gain[:, None, None, None]
    assert conv.reference_absmax == pytest.approx(float(weight.abs().max()), rel=1e-5)
    assert conv.cosine > 0.999
    assert conv.sqnr_db > 35
    assert 0 < conv.atol_scales <= 0.51 + 0.5  # at the positive end half a step is clipped
    assert "conv2.weight" in records


class Transposed(nets.Stubbed):
    """Transposed convs with other numbers of channels in and out: one with a norm, one grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.bn = nn.ConvTranspose2d(3, 8, 2, 2, bias=False), nn.BatchNorm2d(8)
        self.grouped = nn.ConvTranspose2d(8, 6, 3, groups=2)
        self.bn.running_var.uniform_(0.3, 3)

    def body(self, x: Tensor) -> Tensor:
        y: Tensor = self.grouped(self.bn(self.up(x)))
        return y


def test_weight_records_of_transposed_convs_follow_their_output_channels() -> None:
    x = images(2, 3, 6, 6)
    model = Transposed().eval()
    calib, quantized = (compared(model, test, x) for test in stages(model, "fx", x)[1:])
    gain = model.bn.weight / torch.sqrt(model.bn.running_var + model.bn.eps)
    absmax = float((model.up.weight * gain[:, None, None]).abs().max())
    for comparison in (calib, quantized):
        records = {r.name: r for r in comparison.weights}
        assert records["up.weight"].reference_absmax == pytest.approx(absmax, rel=1e-5)
        assert all(0 < (records[n].atol_scales or 0) <= 0.51 + 0.5 for n in ("up.weight", "grouped.weight"))
        assert all(records[n].sqnr_db > 35 for n in ("up.weight", "grouped.weight"))


def test_weight_records_of_qvsq_are_exact() -> None:
    x = images(2, 3, 6, 6)
    _, calib, quantized = stages(nets.ConvBnRelu().eval(), "fx", x)
    records = compared(calib, quantized, x, mode="QvsQ").weights
    assert {r.name for r in records} >= {"conv.weight", "conv2.weight"}
    assert max(r.atol_scales or 0 for r in records) < 1e-3


class Unfused(nets.Stubbed):
    """A group that nothing prevents, a second consumer, a shared conv, a ReLU called as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.free_bn, self.free_relu = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()
        self.second, self.second_bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.shared, self.shared_bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.function = nn.Conv2d(3, 3, 1)

    def body(self, x: Tensor) -> Tensor:
        x = self.free_relu(self.free_bn(self.free(x)))
        y = self.second(x)
        x = self.second_bn(y) + y
        x = self.shared_bn(self.shared(self.shared(x)))
        return F.relu(self.function(x))


def test_unfused_groups_name_their_cause() -> None:
    model, x = Unfused().eval(), images(2, 3, 4, 4)
    groups = {g.names[0]: g for g in two(model, x, "eager").unfused}
    assert groups["free"].names == ("free", "free_bn", "free_relu")
    assert groups["free"].cause == "not listed for fusion"
    assert groups["second"].names == ("second", "second_bn")
    assert groups["second"].cause == "second consumer: the output of second is also read by add_0"
    shared = next(g for name, g in groups.items() if name.startswith("shared"))
    assert "is shared" in shared.cause
    assert groups["function"].names == ("function", "relu_0")
    assert "called as a function" in groups["function"].cause


def test_unfused_groups_fused_one_is_not_listed() -> None:
    model, x = Unfused().eval(), images(2, 3, 4, 4)
    fused = fuse_modules(model, ["free", "free_bn", "free_relu"])
    comparison = compared(model, calibrated(fused, "eager", x), x)
    assert "free" not in {g.names[0] for g in comparison.unfused}
    assert [r.name for r in comparison.layers if r.status == "fused"] == ["free_bn(I)", "free_relu(I)"]


def test_identity_labels_tell_in_which_model_it_is() -> None:
    model, x = nets.Functional().eval(), images(2, 3, 4, 4)
    assert "skip(I vs I)" in [r.name for r in two(model, x, "eager").layers]


def test_labels_name_the_method_of_a_float_functional() -> None:
    model, x = nets.Functional().eval(), images(2, 3, 4, 4)
    assert "sum[add]" in [r.name for r in two(model, x, "eager").layers]


def test_number_of_parameters_counts_once_per_row() -> None:
    model, x = nets.SharedConv().eval(), images(2, 3, 4, 4)
    rows = {r.name: r.num_params for r in two(model, x).layers}
    assert rows["conv"] == 12


def test_converted_model_stage_runs_without_fake_quants() -> None:
    x = images(2, 3, 4, 4)
    calib = calibrated(nets.SharedConv().eval(), "eager", x)
    run = pair(calib, convert(calib), x, names=("qat", "quantized"))
    assert run.pairs["conv"].accumulated.error_max < 1e-6


def test_weight_dtype_of_a_converted_model_is_its_own() -> None:
    calib = calibrated_with(get_default_qconfig(weight_qkwargs={"dtype": "qint16"}))
    weights = [weight_params(module) for module in convert(calib).modules()]
    assert [(w.dtype, w.quant_min, w.quant_max) for w in weights if w is not None] == [("qint16", -32768, 32767)]


def calibrated_with(qconfig: QConfig) -> nn.Module:
    model = nn.Sequential(QuantStub(), nn.Conv2d(2, 3, 1))
    model.qconfig = qconfig  # type: ignore[assignment]
    set_march("bayes")
    calib = prepare_qat(model).eval()
    set_fake_quantize(calib, FakeQuantState.CALIBRATION)
    calib(images(2, 2, 4, 4))
    return calib


class NumberedReLU(nn.Module):
    """A module whose attribute is named like a function call."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv, self.relu_1 = nn.Conv2d(3, 4, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dequant(self.relu_1(self.conv(self.quant(x))))
        return y


def test_unfused_groups_module_named_like_a_function_is_no_function() -> None:
    (group,) = two(NumberedReLU().eval(), images(2, 3, 4, 4), "eager").unfused
    assert (group.names, group.cause) == (("conv", "relu_1"), "not listed for fusion")
