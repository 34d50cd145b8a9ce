"""Patches for ops that have no qconfig attribute of their own, or share one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from profiler.analysis import fixes
from profiler.analysis.context import Context
from profiler.quant import default_calib_16bit_fake_quant_qconfig
from profiler.records import CalledCount, ModelRecord, Patch
from tests.analysis.made import comparison, layer
from tests.analysis.toys import Mlp, built, calibrated_fx, images, layer_of

STUB = layer("x_activation_post_process", kind="quant_stub", reference_type="")
ADD = layer(
    "block.add_0", ("conv",), kind="conv", reference_type="torch.add", fused_names=("block.conv", "block.add_0")
)


def context(*layers: Any) -> Context:
    called = tuple(CalledCount(name, "Conv2d", 1) for name in ("conv", "block.conv", "heads.0"))
    return Context(replace(comparison(*layers), reference=ModelRecord("float", "Net", called=called)))


def lines(patch: Patch) -> list[str]:
    return [line for line in patch.code.splitlines() if "get_submodule" in line]


def test_int16_of_an_automatic_stub_is_set_at_its_reader() -> None:
    reader = layer("conv", (STUB.name,))

    (line,) = lines(fixes.int16(context(STUB, reader), [STUB]))

    assert line.startswith("model.get_submodule('conv').qconfig = default_calib_16bit_fake_quant_qconfig")


def test_qconfig_of_a_conv_fused_with_a_plus_is_set_at_the_conv() -> None:
    (line,) = lines(fixes.int16(context(ADD), [ADD]))

    assert line.startswith("model.get_submodule('block.conv').qconfig = ")


def test_names_with_numbers_are_legal_code() -> None:
    head = layer("heads.0")

    for patch in (
        fixes.int16(context(head), [head]),
        fixes.high_precision_output(context(head), head),
        fixes.fixed_scale(context(head), head, 0.5, "qint8"),
        fixes.unshare(head, 2),
    ):
        compile(patch.code, "patch", "exec")


@pytest.mark.parametrize(("low", "high"), [(0.0, 255.0), (-3.0, -1.0), (5.0, 5.0)])
def test_normalise_input_is_legal_code(low: float, high: float) -> None:
    scope = {"x": low}
    exec(fixes.normalise_input("quant", low, high).code, scope)

    assert scope["x"] == pytest.approx(-1.0 if low < high else 0.0, abs=1e-4)


def test_int16_patch_at_the_reader_reaches_the_automatic_stub() -> None:
    batches = [x.flatten(1)[:, :16] for x in images()]
    toy = built(Mlp())
    toy.net[0].qconfig = default_calib_16bit_fake_quant_qconfig  # type: ignore[index,union-attr,operator]

    params = layer_of(calibrated_fx(toy, batches), batches, "x_activation_post_process").qparams

    assert params is not None
    assert params.dtype == "qint16"
