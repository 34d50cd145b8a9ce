"""R27: on trained networks each template alters exactly the intended ops, and all of it is in the change log."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

from profiler.quant import (
    ConvDtypeTemplate,
    MatmulDtypeTemplate,
    ModuleNameTemplate,
    QconfigSetter,
    SensitivityTemplate,
    convert_fx,
    default_calib_8bit_fake_quant_qconfig,
    prepare_qat_fx,
    set_march,
)
from profiler.quant.ops.functional import spec_of_op
from profiler.quant.ops.registry import Family
from profiler.quant.setters.files import write_qconfig_logs
from sample_models import mobilenet_v2, vit, yolov3
from tests.quant.setters.nets import differences, dtypes_of, logged
from tests.quant.stages import calibrate

SAMPLES: dict[str, Any] = {"mobilenet_v2": mobilenet_v2, "vit": vit, "yolov3": yolov3}
_LINE = re.compile(r"^\w+(?: \d)? \| (\S+) \| (output|weight|input) \| (\S+) -> (\S+)(?: with threshold \S+)? \| .+$")


@functools.cache
def sample(name: str) -> nn.Module:
    model: nn.Module = SAMPLES[name].load()
    return model


def plain(*templates: Any) -> QconfigSetter:
    return QconfigSetter(
        default_calib_8bit_fake_quant_qconfig, templates, enable_optimize=False, high_precision_output=False
    )


def altered(name: str, used: QconfigSetter, tmp_path: Path) -> tuple[dict[tuple[str, str], str], Any]:
    """What a setter altered in the prepared sample model, after a check that the written log says exactly this."""
    before = prepare_qat_fx(sample(name), qconfig_setter=plain())
    after = prepare_qat_fx(sample(name), qconfig_setter=used)
    found = {key: dtype for key, dtype in differences(before, after).items() if key[0] != "stubs"}
    lines = write_qconfig_logs(used, tmp_path, after)[0].read_text("utf-8").split("\n\n")[0].splitlines()
    parsed = [_LINE.match(line) for line in lines]
    told = {(m[1], m[2]) for m in parsed if m is not None and m[2] != "input"}
    assert all(parsed) or lines == ["no template changed anything"]
    assert found == logged(used)
    assert told >= found.keys()
    return found, after


def readers(prepared: fx.GraphModule, kinds: tuple[str, ...], operand: int) -> set[str]:
    """Paths of the modules that make this operand of all ops of some kinds, read off the prepared graph."""
    makers = set()
    for node in prepared.graph.nodes:
        if node.op != "call_module" or not type(prepared.get_submodule(str(node.target))).__name__.endswith(kinds):
            continue
        source = node.args[operand]
        spec = spec_of_op(prepared.get_submodule(str(source.target)))
        while spec is not None and spec.family is Family.SCALE_KEEPING:
            source = source.args[0]
            spec = spec_of_op(prepared.get_submodule(str(source.target)))
        makers.add(str(source.target))
    return makers


@pytest.mark.parametrize("name", SAMPLES)
def test_r27_name_template_alters_one_prefix_and_nothing_else(name: str, tmp_path: Path) -> None:
    everything, _ = altered(name, plain(ModuleNameTemplate({"": "qint16"})), tmp_path)
    prefix = {"mobilenet_v2": "backbone.layer3", "vit": "blocks.1", "yolov3": "bbox_head"}[name]
    found, _ = altered(name, plain(ModuleNameTemplate({prefix: "qint16"})), tmp_path)
    assert found == {key: d for key, d in everything.items() if key[0].startswith(f"{prefix}.")}
    assert 0 < len(found) < len(everything)


@pytest.mark.parametrize("name", ["mobilenet_v2", "yolov3"])
def test_r27_conv_template_alters_weights_of_convolutions_and_makers_of_their_inputs(name: str, tmp_path: Path) -> None:
    set_march("nash-m")
    found, after = altered(name, plain(ConvDtypeTemplate("qint16", "qint16")), tmp_path)
    convolutions = {p for p, m in after.named_modules() if isinstance(m, nn.Conv2d)}
    makers = readers(after, ("Conv2d",), 0)
    assert {op for op, port in found if port == "weight"} == convolutions
    assert {op for op, port in found if port == "output"} == makers
    assert len(convolutions) > 20


def test_r27_matmul_template_alters_makers_of_the_operands(tmp_path: Path) -> None:
    found, _ = altered("vit", plain(MatmulDtypeTemplate("qint16")), tmp_path)
    assert found
    assert all(port == "output" for _, port in found)
    linear = [op for op, _ in found if "norm" in op or "mlp" in op]
    assert linear == []


@pytest.mark.parametrize(("sensitive_type", "ports"), [("activation", {"output"}), ("weight", {"weight"})])
def test_r27_sensitivity_template_alters_the_first_rows(sensitive_type: Any, ports: set[str], tmp_path: Path) -> None:
    set_march("nash-m")
    everything = dtypes_of(prepare_qat_fx(sample("mobilenet_v2"), qconfig_setter=plain()))
    kinds = {"output": "activation", "weight": "weight"}
    table = [[op, kinds[port], "", 1 / (i + 1), "qint8", "0(0%)"] for i, (op, port) in enumerate(everything)]
    torch.save(table, tmp_path / "sensitive_ops.pt")
    template = SensitivityTemplate(tmp_path / "sensitive_ops.pt", 5, sensitive_type)
    found, _ = altered("mobilenet_v2", plain(template), tmp_path)
    assert set(found) == set([key for key in everything if key[1] in ports][:5])


def test_r27_fallbacks_follow_the_templates_and_are_in_the_log(tmp_path: Path) -> None:
    used = QconfigSetter(default_calib_8bit_fake_quant_qconfig, [ModuleNameTemplate({"": "qint16"})])
    found, after = altered("mobilenet_v2", used, tmp_path)
    back = {c.op for c in used.changes if c.template == "enable_optimize"}
    assert back == {*(f"backbone.layer{i}.1.depthwise.conv" for i in (2, 3, 4)), "head.pool"}
    assert all(dtypes_of(after)[op, "output"] == "qint8" for op in back)
    assert found["head.fc", "output"] == "torch.float32"


def test_r27_thresholds_reach_the_integers_exactly(tmp_path: Path) -> None:
    wanted = {
        "backbone.conv1.conv": {"dtype": "qint8", "threshold": 6.0},
        "backbone.layer3.1.skip_add": {"dtype": "qint16", "threshold": 12.5},
    }
    used = QconfigSetter(default_calib_8bit_fake_quant_qconfig, [ModuleNameTemplate(wanted)])
    _, prepared = altered("mobilenet_v2", used, tmp_path)
    calib = calibrate(prepared, mobilenet_v2.calibration_batches()[:2])
    quantized = convert_fx(calib)
    for path, scale in (("backbone.conv1.conv", 6.0 / 128), ("backbone.layer3.1.skip_add", 12.5 / 32768)):
        want = torch.tensor(scale)
        assert torch.equal(calib.get_submodule(path).activation_post_process.scale.reshape(()), want)
        assert torch.equal(quantized.get_submodule(path).out_scale.reshape(()), want)


def test_r27_more_int16_means_less_error_at_the_output() -> None:
    data = mobilenet_v2.calibration_batches()[:3]
    expected = sample("mobilenet_v2")(data[0]).detach()

    def error(*templates: Any) -> float:
        used = QconfigSetter(default_calib_8bit_fake_quant_qconfig, templates)
        quantized = convert_fx(calibrate(prepare_qat_fx(sample("mobilenet_v2"), qconfig_setter=used), data))
        return float((quantized(data[0]) - expected).square().mean())

    int8, mixed = error(), error(ModuleNameTemplate({"": "qint16"}))
    assert mixed < 0.7 * int8
