"""R54: set_preserve_qat_mode keeps chosen ops in fake-quant form inside the converted model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from profiler.errors import ConfigError, PrepareError
from profiler.quant import (
    DeQuantStub,
    FloatFunctional,
    QTensor,
    QuantStub,
    convert,
    convert_fx,
    default_calib_8bit_fake_quant_qconfig,
    fuse_modules,
    prepare_qat,
    prepare_qat_fx,
    set_preserve_qat_mode,
)
from profiler.quant.fake_quant import FakeQuantize
from tests.quant.stages import calibrate

BATCHES = [torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(k)) for k in range(3)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.second, self.add, self.last = nn.Conv2d(4, 4, 1), FloatFunctional(), nn.Conv2d(4, 2, 1)
        self.qconfig = default_calib_8bit_fake_quant_qconfig

    def forward(self, x: Any) -> Any:
        y = self.relu(self.bn(self.conv(self.quant(x))))
        return self.dequant(self.last(self.add.add(self.second(y), y) + y))


def stages(front_end: str, choose: Any = None, choose_prepared: Any = None) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model: Any = Net().eval()
    if choose is not None:
        choose(model)
    if front_end == "eager":
        model = fuse_modules(model, [["conv", "bn", "relu"], ["second", "add"]])
        prepared: Any = calibrate(prepare_qat(model), BATCHES)
    else:
        prepared = calibrate(prepare_qat_fx(model), BATCHES)
    if choose_prepared is not None:
        choose_prepared(prepared)
    return prepared, (convert if front_end == "eager" else convert_fx)(prepared)


def preserved(model: nn.Module) -> set[str]:
    return {n.rpartition(".")[0] for n, m in model.named_modules() if isinstance(m, FakeQuantize)}


@pytest.mark.parametrize("front_end", ["eager", "fx"])
@pytest.mark.parametrize("op", ["conv", "last", "quant"])
def test_r54_chosen_op_stays_fake_quant_and_its_neighbours_are_integers(front_end: str, op: str) -> None:
    prepared, converted = stages(front_end, choose_prepared=lambda m: set_preserve_qat_mode(m, prefixes=(op,)))
    _, plain = stages(front_end)
    assert preserved(converted) == {op}
    seen: list[Any] = []
    converted.last.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    y = converted(BATCHES[0])
    if op != "last":
        assert isinstance(seen[0], QTensor)
        assert seen[0].holds_codes
    step = float(prepared.last.activation_post_process.scale)
    assert float((y - prepared(BATCHES[0])).abs().max()) <= 2.001 * step
    assert float((y - plain(BATCHES[0])).abs().max()) <= 2.001 * step


@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_r54_fused_op_follows_its_convs_flag_alone(front_end: str) -> None:
    def flag(*names: str) -> Any:
        return lambda m: [setattr(m.get_submodule(n), "preserve_qat_mode", True) for n in names]

    assert preserved(stages(front_end, flag("conv"))[1]) == {"conv"}
    assert preserved(stages(front_end, flag("bn", "relu"))[1]) == set()
    assert preserved(stages(front_end, flag("second"))[1]) == {"add"}


@pytest.mark.parametrize("front_end", ["eager", "fx"])
def test_r54_generated_functional_is_addressed_by_name_on_the_prepared_model(front_end: str) -> None:
    name = "add_0"
    prepared, converted = stages(front_end, choose_prepared=lambda m: set_preserve_qat_mode(m, prefixes=(name,)))
    assert preserved(converted) == {"_generated_add_0"}
    step = float(prepared.last.activation_post_process.scale)
    assert float((converted(BATCHES[0]) - prepared(BATCHES[0])).abs().max()) <= 2.001 * step


def test_r54_types_and_value_false_take_a_choice_back() -> None:
    def choose(model: nn.Module) -> None:
        set_preserve_qat_mode(model, types=(nn.Conv2d,))
        set_preserve_qat_mode(model, prefixes=("last",), value=False)

    assert preserved(stages("fx", choose)[1]) == {"conv", "add"}


def test_r54_name_that_matches_nothing_is_an_error_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no module matches 'secnd'; the nearest names are second"):
        set_preserve_qat_mode(Net(), prefixes=("secnd",))


def test_r54_nearest_names_are_ops_and_nothing_inside_of_them() -> None:
    prepared, _ = stages("fx")

    with pytest.raises(ConfigError, match="the nearest names are") as told:
        set_preserve_qat_mode(prepared, prefixes=("zz",))

    assert "post_process" not in str(told.value)
    assert "fake_quant" not in str(told.value)


def test_r54_converting_twice_is_still_refused() -> None:
    _, converted = stages("fx", lambda m: set_preserve_qat_mode(m, prefixes=("conv",)))
    with pytest.raises(PrepareError, match="converted already"):
        convert_fx(converted)
