"""Files to look at: they open, and their nodes have the names of the modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from profiler.errors import ConfigError, ModelError
from profiler.quant import March, export_quantized_onnx, export_to_onnx, set_march
from profiler.quant.deploy.session import make_session, run_session
from tests.quant.deploy.models import BATCHES, IMAGE, Net, converted
from tests.quant.stages import eager, fx


def op_names(path: Path) -> set[str]:
    return {node.name.rpartition("/")[0] for node in onnx.load(path).graph.node}


@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_r32_quantized_file_opens_and_nodes_are_named_like_modules(front_end: str, tmp_path: Path) -> None:
    model = converted(front_end)

    export_quantized_onnx(model, IMAGE, tmp_path / "net.onnx")

    onnx.checker.check_model(onnx.load(tmp_path / "net.onnx"), full_check=True)
    assert {"quant", "stem.0", "skip", "pool", "flatten", "fc", "head"} <= op_names(tmp_path / "net.onnx")


@pytest.mark.parametrize("front_end", [eager, fx])
def test_r32_prepared_file_opens_and_computes_what_the_model_computes(front_end: Any, tmp_path: Path) -> None:
    set_march(March.BAYES)
    model = front_end(Net().eval(), BATCHES)

    export_to_onnx(model, (IMAGE,), tmp_path / "qat.onnx", opset_version=13)

    proto = onnx.load(tmp_path / "qat.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert {"quant", "fc", "pool"} <= op_names(tmp_path / "qat.onnx")
    actual = run_session(make_session(proto, 0), ["image"], [IMAGE], ["logits", "boxes"])
    with torch.no_grad():
        expected = model(IMAGE)
    for name, value in zip(("logits", "boxes"), actual, strict=True):
        step = float(expected[name].abs().max()) / 127  # a tie may fall on the other side
        assert float((value - expected[name]).abs().max()) <= 1.01 * step


def test_names_of_inputs_and_outputs_can_be_chosen(tmp_path: Path) -> None:
    export_quantized_onnx(converted(), IMAGE, tmp_path / "net.onnx", input_names=["x"], output_names=["a", "b"])

    graph = onnx.load(tmp_path / "net.onnx").graph
    assert [i.name for i in graph.input] == ["x"]
    assert [o.name for o in graph.output] == ["a", "b"]
    onnx.checker.check_model(onnx.load(tmp_path / "net.onnx"), full_check=True)


def test_wrong_number_of_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected 2 different names"):
        export_quantized_onnx(converted(), IMAGE, tmp_path / "net.onnx", output_names=["a"])


def test_name_that_another_value_has_is_refused(tmp_path: Path) -> None:
    export_quantized_onnx(converted(), IMAGE, tmp_path / "net.onnx")
    graph = onnx.load(tmp_path / "net.onnx").graph
    inner = graph.node[0].output[0]
    for argument, names in (
        ({"input_names": [inner]}, inner),
        ({"output_names": ["a", inner]}, inner),
        ({"input_names": [graph.initializer[0].name]}, graph.initializer[0].name),
        ({"input_names": ["x"], "output_names": ["x", "b"]}, "x"),
    ):
        with pytest.raises(ConfigError, match=f"{names} names another value"):
            export_quantized_onnx(converted(), IMAGE, tmp_path / "other.onnx", **argument)
    assert not (tmp_path / "other.onnx").exists()
    own = [o.name for o in graph.output]
    export_quantized_onnx(converted(), IMAGE, tmp_path / "swapped.onnx", output_names=own[::-1])
    onnx.checker.check_model(onnx.load(tmp_path / "swapped.onnx"), full_check=True)


@pytest.mark.parametrize("export", [export_to_onnx, export_quantized_onnx])
def test_float_model_is_refused(export: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="float model"):
        export(Net().eval(), IMAGE, tmp_path / "net.onnx")
