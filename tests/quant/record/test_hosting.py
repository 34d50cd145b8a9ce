from __future__ import annotations

import copy
import pickle
from collections import OrderedDict

import torch
from torch import Tensor, nn

from profiler.quant import convert
from tests.quant.record.stages import calibrated, relative_error, rows

BATCHES = rows(64, 4)


def test_hosting_sequential_as_model_runs_its_own_layers_only() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    model = calibrated(net, BATCHES)
    assert len(model) == 3
    assert list(model) == [model[0], model[1], model[-1]]
    assert any("input" in name for name, _ in model.named_children())
    for stage in (model, convert(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert relative_error(net(BATCHES[0]), stage(BATCHES[0])) < 0.04
    assert isinstance(model, nn.Sequential)
    assert str(model).startswith("Sequential(")


class AddsToEnd(nn.Sequential):
    """A container with code of its own."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x) + 1
        return y * len(self) + self[0](x)


class Dense(nn.ModuleDict):
    """Each layer reads what all before it gave."""

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


def test_hosting_containers_with_code_of_their_own_do_not_see_what_was_added() -> None:
    dense = Dense(OrderedDict((f"l{i}", nn.Linear(4 + 2 * i, 2)) for i in range(3)))
    net = nn.Sequential(AddsToEnd(nn.Linear(4, 4), nn.Linear(4, 4)), dense, nn.Linear(10, 3)).eval()
    model = calibrated(net, BATCHES)
    assert hasattr(model[0], "_generated_add_0")
    assert len(model[0]) == 2
    assert list(model[1]) == ["l0", "l1", "l2"]
    assert "_generated_cat_0" not in model[1]
    for stage in (model, convert(model), copy.deepcopy(model)):
        assert relative_error(net(BATCHES[0]), stage(BATCHES[0])) < 0.06


def test_hosting_functions_of_hooks_in_a_sequential_are_no_layers() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    net[0].register_forward_hook(lambda module, given, output: output * 2)
    model = calibrated(net, BATCHES)
    assert hasattr(model, "_generated_mul_0")
    assert relative_error(net(BATCHES[0]), convert(model)(BATCHES[0])) < 0.05
