"""Fake quant (VALIDATION) against integers, every op fed the same codes: histograms of the differences in codes.

`pytest -s` prints them.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from profiler.quant import QTensor
from profiler.quant.states import named_fake_quants
from sample_models import mobilenet_v2
from tests.models import images, make
from tests.quant.stages import FRONT_ENDS
from tests.quant.test_integer_execution import NETS, QCONFIGS, Arithmetic, NonLinear
from tests.sample_models.quantizing import int8_stages

Histograms = dict[str, Counter[int]]


def as_fake_quant_gets_it(value: Any) -> Any:
    """Codes as float values on the grid."""
    if isinstance(value, QTensor) and value.holds_codes:
        return QTensor.wrap(value.dequantize(), value.scale, value.qdtype, value.ch_axis)
    return value


class Comparison:
    """Each op of the fake-quant model runs on the inputs that its integer form got."""

    def __init__(self, fake: nn.Module, integer: nn.Module) -> None:
        self.histograms: Histograms = {}
        forms = {name: module for name, module in fake.named_modules() if hasattr(module, "to_integer")}
        for name, form in forms.items():
            if any(name.startswith(f"{other}.") for other in forms):  # a part of a compound op: seen with it
                continue
            integer.get_submodule(name).register_forward_hook(self._hook(name, form), with_kwargs=True)

    def _hook(self, name: str, form: nn.Module) -> Any:
        def compare(_module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            again = form(*tree_map(as_fake_quant_gets_it, args), **tree_map(as_fake_quant_gets_it, kwargs))
            counts = self.histograms.setdefault(f"{name} {form._get_name()}", Counter())
            for y_fq, y_q in zip(tree_leaves(again), tree_leaves(result), strict=True):
                counts.update(differences(y_fq, y_q))

        return compare


def differences(y_fq: Any, y_q: Any) -> Counter[int]:
    """How many codes differ by how much, fake quant minus integers; high-precision results are not counted."""
    if not isinstance(y_q, QTensor):
        return Counter()
    apart = y_fq.int_repr().to(torch.int64) - y_q.plain.to(torch.int64)
    values, counts = apart.unique(return_counts=True)
    return Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))


def compared(fake: nn.Module, integer: nn.Module, batches: list[Tensor]) -> Histograms:
    comparison = Comparison(fake, integer)
    with torch.no_grad():
        for batch in batches:
            integer(batch)
    return comparison.histograms


def assert_agree(histograms: Histograms, share: float = 0.999) -> None:
    assert histograms
    for name, counts in histograms.items():
        total = sum(counts.values())
        print(f"{name:45s} {total:8d} codes: {dict(sorted(counts.items()))}")
    for name, counts in histograms.items():
        assert set(counts) <= {-1, 0, 1}, name
        assert counts[0] >= share * sum(counts.values()), name


@pytest.mark.parametrize(
    ("cls", "front_end"),
    [*((cls, front_end) for cls in NETS for front_end in FRONT_ENDS), (NonLinear, "fx"), (Arithmetic, "fx")],
)
def test_every_op_of_the_test_nets_agrees(cls: type[nn.Module], front_end: str) -> None:
    stage, convert = FRONT_ENDS[front_end]
    fake = stage(make(cls), images(), QCONFIGS["int8"])
    assert_agree(compared(fake, convert(fake), images(3)))


def test_every_op_of_the_digits_mobilenet_agrees() -> None:
    sample = mobilenet_v2.flow_sample()
    fake, integer = int8_stages(sample, "fx")
    histograms = compared(fake, integer, mobilenet_v2.calibration_batches()[:1])
    assert len(histograms) >= 25
    assert_agree(histograms)


def test_comparison_sees_an_op_with_another_scale() -> None:
    stage, convert = FRONT_ENDS["fx"]
    fake = stage(make(NETS[0]), images(), QCONFIGS["int8"])
    integer = convert(fake)
    name, fake_quant = next((n, q) for n, q in named_fake_quants(fake) if n.startswith("wide.act"))
    fake_quant.set_qparams(fake_quant.scale * 1.02)
    with pytest.raises(AssertionError, match=name.partition(".")[0]):
        assert_agree(compared(fake, integer, images(3)))
