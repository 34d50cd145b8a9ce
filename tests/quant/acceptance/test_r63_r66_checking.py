"""R63 and R66: check_qat_model on real and awkward nets, and the observer column of both qconfig files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tests.models as nets
from profiler import model_profiler
from profiler.quant import (
    FakeQuantState,
    FixedScaleObserver,
    MinMaxObserver,
    QConfig,
    check_qat_model,
    default_calib_8bit_fake_quant_qconfig,
    default_calib_8bit_weight_32bit_out_fake_quant_qconfig,
    default_calib_16bit_fake_quant_qconfig,
    default_qat_8bit_fake_quant_qconfig,
    get_default_qconfig,
    prepare_qat,
    prepare_qat_fx,
    set_fake_quantize,
)
from profiler.quant.checking.result import SECTIONS, ModelCheck
from profiler.quant.naming import op_name
from profiler.quant.states import journal_of, named_fake_quants
from sample_models import digits, mobilenet_v2, vit, yolov3
from sample_models.flows import Sample, fuse_parts
from tests.quant.checking.tables import only_grid, parse_sections
from tests.quant.stages import calibrate

INT8, INT16 = default_calib_8bit_fake_quant_qconfig, default_calib_16bit_fake_quant_qconfig
OUT = default_calib_8bit_weight_32bit_out_fake_quant_qconfig


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that a forward could change: tensors, flags, modes, modules, hooks, journal, effects, random state."""
    journal = journal_of(model)
    return {
        "tensors": {name: (id(t), t.detach().clone()) for name, t in model.state_dict(keep_vars=True).items()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "flags": {n: (fq.is_observer_on, fq.is_fake_quant_on) for n, fq in named_fake_quants(model)},
        "batches": {n: fq.activation_post_process.num_batches for n, fq in named_fake_quants(model)},
        "hooks": {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()},
        "journal": None if journal is None else copy.deepcopy(vars(journal)),
        "effects": copy.deepcopy(getattr(model, "quant_effects", None)),
        "grads": [name for name, p in model.named_parameters() if p.grad is not None],
        "random": torch.get_rng_state(),
    }


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    after = snapshot(model)
    assert before.keys() == after.keys()
    tensors, others = after.pop("tensors"), dict(before)
    expected = others.pop("tensors")
    assert list(tensors) == list(expected)
    for name, (identity, value) in expected.items():
        assert tensors[name][0] == identity, name
        assert torch.equal(bits(tensors[name][1]), bits(value)), name
    assert torch.equal(others.pop("random"), after.pop("random"))
    assert after == others


def texts(rows: Any, *fields: str) -> list[list[str]]:
    return [[str(getattr(row, field)) for field in fields] for row in rows]


def assert_reads_back(folder: Path, check: ModelCheck) -> dict[str, Any]:
    """The file's sections are those of 4.3 in order; each table is what the result holds."""
    sections = parse_sections((folder / "model_check_result.txt").read_text("utf-8"))
    assert list(sections) == list(SECTIONS)
    fusable = [[row[0].removesuffix("(shared)") for row in rows[1:]] for rows in sections[SECTIONS[0]]]
    assert fusable == [list(group.names) for group in check.fusable]
    assert only_grid(sections, SECTIONS[1]) == texts(check.called, "name", "count")
    for title, counts in ((SECTIONS[2], check.input_dtypes), (SECTIONS[3], check.output_dtypes)):
        assert sections[title][0][0][:5] == ["module type", "torch.float32", "qint8", "qint16", "torch.float16"]
        rows = [[int(cell) for cell in row[1:]] for row in only_grid(sections, title)]
        assert rows[-1] == [sum(column) for column in zip(*rows[:-1], strict=True)]
        assert [sum(row) for row in rows[:-1]] == [sum(n for _, n in row.counts) for row in counts]
        assert only_grid(sections, title)[-1][0] == "total"
    heads = [sections[title][0][0] for title in SECTIONS[4:]]
    assert heads == [
        ["Module Name", "Module Type", "Input dtype", "out dtype", "ch_axis", "observer"],
        ["Module Name", "Module Type", "weight dtype", "ch_axis", "observer"],
        ["Module Name", "Module Type", "Msg"],
        ["opcode", "name", "target", "args", "kwargs"],
    ]
    outputs = [[row[i] for i in (0, 1, 3, 4, 5)] for row in only_grid(sections, SECTIONS[4])]
    assert outputs == texts(check.outputs, "name", "type_name", "out_dtype", "ch_axis", "observer")
    weights = texts(check.weights, "name", "type_name", "weight_dtype", "ch_axis", "observer")
    assert only_grid(sections, SECTIONS[5]) == weights
    assert only_grid(sections, SECTIONS[6]) == texts(check.messages, "name", "type_name", "message")
    graph = parse_sections((folder / "fx_graph.txt").read_text("utf-8"))
    assert list(graph) == ["Graph:"]
    assert graph["Graph:"] == sections["Graph:"]
    assert [row[:3] for row in only_grid(graph, "Graph:")] == texts(check.graph, "opcode", "name", "target")
    return sections


def prepare_sample(sample: Sample, front_end: str) -> Any:
    model = sample.load()
    if front_end == "fx":
        outputs, wide = dict.fromkeys(sample.outputs, OUT), dict.fromkeys(sample.wide, INT16)
        return prepare_qat_fx(model, {"": INT8, "module_name": {**outputs, **wide}})
    fuse_parts(sample, model)
    model.qconfig = INT8  # type: ignore[assignment]
    for names, qconfig in ((sample.outputs, OUT), (sample.wide, INT16)):
        for name in names:
            model.get_submodule(name).qconfig = qconfig  # type: ignore[assignment]
    return prepare_qat(model)


def digit_image() -> Tensor:
    return digits.normalise(digits.test_set()[0][:1])


SAMPLES: dict[str, tuple[Callable[[], Sample], str, Callable[[], Tensor]]] = {
    "mobilenet_v2 eager": (mobilenet_v2.flow_sample, "eager", digit_image),
    "mobilenet_v2 fx": (mobilenet_v2.flow_sample, "fx", digit_image),
    "vit fx": (vit.flow_sample, "fx", digit_image),
    "vit eager": (vit.flow_sample, "eager", digit_image),
    "yolov3 eager": (yolov3.flow_sample, "eager", lambda: yolov3.calibration_batches()[0][:1]),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_r63_sample_models_sections_read_back_and_nothing_changes(name: str, tmp_path: Path) -> None:
    make, front_end, image = SAMPLES[name]
    sample = make()
    model = prepare_sample(sample, front_end)
    before = snapshot(model)

    check = check_qat_model(model, image(), save_results=True, out_dir=tmp_path)

    assert_unchanged(model, before)
    assert_reads_back(tmp_path, check)
    last = {row.name for row in check.messages if row.message == "activation is None (output layer?)"}
    assert set(sample.outputs) <= last
    assert not set(check.missed_high_precision) & set(sample.outputs)
    dtypes = {dtype for row in check.output_dtypes for dtype, _ in row.counts}
    assert ("qint16" in dtypes) == bool(sample.wide)
    weighted = [
        op_name(name.removesuffix(".weight_fake_quant")) for name in before["flags"] if "weight_fake_quant" in name
    ]
    assert sorted(row.name for row in check.weights) == sorted(weighted)
    assert len(weighted) > 10


@pytest.mark.parametrize("state", ["as prepared", "training", "calibration", "validation"])
@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_r63_statistics_flags_and_journal_stay_in_every_state(front_end: str, state: str) -> None:
    model: Any = nets.make(nets.Residual)
    model.qconfig = default_qat_8bit_fake_quant_qconfig if state == "training" else INT8
    model = prepare_qat(model) if front_end == "eager" else prepare_qat_fx(model, {"": model.qconfig})
    if state != "as prepared":
        calibrate(model, nets.images(2))
    if state == "calibration":
        set_fake_quantize(model, FakeQuantState.CALIBRATION)
    if state == "training":
        model.train()
        model.stem.eval()  # a part that the user froze
        set_fake_quantize(model, FakeQuantState.QAT)
    before, batch = snapshot(model), nets.images(1)[0]
    kept = batch.clone()
    check_qat_model(model, batch)
    assert_unchanged(model, before)
    assert torch.equal(batch, kept)


def test_r63_failing_forward_leaves_everything_as_it_was() -> None:
    model: Any = nets.make(nets.Failing)
    model.qconfig = INT8
    model = calibrate(prepare_qat(model), nets.images(2))
    set_fake_quantize(model, FakeQuantState.CALIBRATION)
    model.inner.fails = True
    before = snapshot(model)
    with pytest.raises(ValueError, match="planted"):
        check_qat_model(model, nets.images(1))
    assert_unchanged(model, before)
    model.inner.fails = False
    assert check_qat_model(model, nets.images(1)).has_run


class Planted(nets.Stubbed):
    """A fixed scale, int16 weights, an output without activation, a float layer, a change of dtype."""

    def __init__(self) -> None:
        super().__init__(scale=1 / 128)
        self.plain, self.wide, self.heavy, self.last = (nn.Conv2d(3, 3, 1) for _ in range(4))
        self.tail = nn.Conv2d(3, 2, 1)
        self.unused = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Any:
        return self.tail(self.dequant(self.last(self.heavy(self.wide(self.plain(self.quant(x)))))))


def planted(front_end: str) -> Any:
    model = nets.make(Planted)
    qconfigs: dict[str, QConfig | None] = {
        "wide": INT16,
        "heavy": get_default_qconfig(weight_qkwargs={"dtype": "qint16"}),
        "last": OUT,
        "tail": None,
    }
    if front_end == "fx":
        return prepare_qat_fx(model, {"": INT8, "module_name": qconfigs})
    model.qconfig = INT8
    for name, qconfig in qconfigs.items():
        model.get_submodule(name).qconfig = qconfig
    return prepare_qat(model)


@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_r63_planted_qconfigs_give_their_messages(front_end: str, tmp_path: Path) -> None:
    check = check_qat_model(planted(front_end), nets.images(1), save_results=True, out_dir=tmp_path)
    assert {(row.name, row.message) for row in check.messages} == {
        ("quant", "Fixed scale 0.0078125"),
        ("wide", "input dtype qint8 is not same with out dtype qint16"),
        ("heavy", "qint16 weight"),
        ("heavy", "input dtype qint16 is not same with out dtype qint8"),
        ("last", "activation is None (output layer?)"),
        ("tail", "qconfig is None: runs in float"),
    }
    sections = assert_reads_back(tmp_path, check)
    rows = {row[0]: row for row in only_grid(sections, "Each layer out qconfig:")}
    assert rows["last"][2:] == ["qint8", "None", "activation = None", ""]
    assert rows["tail"][2:5] == ["torch.float32", "torch.float32", "qconfig = None"]
    assert ["unused", "0"] in only_grid(sections, "Each module called times:") or front_end == "fx"


def test_r63_hostile_names_keep_the_columns(tmp_path: Path) -> None:
    names = ("a|b", "line\nbreak", "</script>", "größe_卷积", "back\\slash", "with space, and comma")

    class Hostile(nets.Stubbed):
        def __init__(self) -> None:
            super().__init__()
            for name in names:
                self.add_module(name, nn.Conv2d(3, 3, 1))

        def body(self, x: Any) -> Any:
            for name in names:
                x = getattr(self, name)(x)
            return x

    model: Any = nets.make(Hostile)
    model.qconfig = INT8
    check = check_qat_model(prepare_qat(model), nets.images(1), save_results=True, out_dir=tmp_path)
    sections = parse_sections((tmp_path / "model_check_result.txt").read_text("utf-8"))
    called = [row[0] for row in only_grid(sections, "Each module called times:")]
    expected = [r"a\x7cb", r"line\nbreak", "</script>", "größe_卷积", r"back\\slash", "with space, and comma"]
    assert [name for name in called if name not in ("quant", "dequant")] == expected
    assert len(only_grid(sections, "Graph:")) == len(check.graph)
    assert [row.name for row in check.weights] == list(names)  # the result holds the names as they are


# --- R66 ---

MIN_MAX = get_default_qconfig(
    activation_qkwargs={"observer": MinMaxObserver, "averaging_constant": 0.25},
    weight_qkwargs={"observer": MinMaxObserver, "averaging_constant": 1.0},
)
FIXED = get_default_qconfig(activation_qkwargs={"observer": FixedScaleObserver, "scale": 0.05, "dtype": "qint8"})


@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_r66_observer_column_shows_averaging_constant_and_fixed_scale_in_both_files(
    front_end: str, tmp_path: Path
) -> None:
    model: Any = nets.make(nets.Residual)
    model.qconfig, model.head.qconfig = MIN_MAX, FIXED
    by_name = {"": MIN_MAX, "module_name": {"head": FIXED}}
    prepared = prepare_qat(model) if front_end == "eager" else prepare_qat_fx(model, by_name)
    check_qat_model(prepared, nets.images(1), save_results=True, out_dir=tmp_path)
    calib = calibrate(prepared, nets.images(2))
    model_profiler(calib, nets.images(2), out_dir=tmp_path / "report")
    ours = (tmp_path / "model_check_result.txt").read_text("utf-8")
    info = next((tmp_path / "report").rglob("qconfig_info.txt")).read_text("utf-8")
    info = info.replace("are expected..\n", "are expected.:\n")  # its third heading ends in two dots
    for text in (ours, info):
        sections = parse_sections(text)
        outputs = {row[0]: row[-1] for row in only_grid(sections, "Each layer out qconfig:")}
        assert sections["Each layer out qconfig:"][0][0][-1] == "observer"
        assert outputs["quant"] == "MinMaxObserver(averaging_constant=0.25)"
        assert outputs["cat_0"] == "MinMaxObserver(averaging_constant=0.25)"
        assert outputs["head"] == "FixedScaleObserver(scale=0.05)"
        weights = {row[0]: row[-1] for row in only_grid(sections, "Weight qconfig:")}
        assert weights.pop("head").startswith("MinMaxObserver(averaging_constant=")
        assert weights
        assert set(weights.values()) == {"MinMaxObserver(averaging_constant=1.0)"}
