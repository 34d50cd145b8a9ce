"""Random networks through `quantize`, `prepare` and the exported file."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from profiler.quant import PrepareMethod, convert, prepare, quantize
from tests.quant.onnx_check import assert_equals_onnx
from tests.random_nets.generator import fresh, random_net
from tests.random_nets.stages import DEFAULT, RECORD, all_stages, calibrate, snapshot
from tests.random_nets.test_random_nets import assert_near, readable, tensors_of

SEEDS = [*range(0, 50, 5), *(pytest.param(seed, marks=pytest.mark.heavy) for seed in range(50, 500, 5))]


@pytest.mark.parametrize("is_traceable", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_random_net_by_quantize_gives_stages_that_agree(seed: int, is_traceable: bool) -> None:
    net = random_net(seed, traceable=is_traceable)
    before = snapshot(net.model)
    with readable(net):
        stages = quantize(net.model, [fresh(batch) for batch in net.batches], qconfig=DEFAULT)
        assert stages.effects
        for batch in net.batches:
            net.run(stages.float, batch)
            (x_fq, way_fq), (x_q, way_q) = net.run(stages.calib, batch), net.run(stages.quantized, batch)
            if way_fq == way_q:
                assert_near(tensors_of(x_fq), tensors_of(x_q), bound=0.05)
    assert snapshot(net.model) == before


@pytest.mark.parametrize("seed", SEEDS)
def test_random_net_by_prepare_jit_runs_on_all_ways(seed: int) -> None:
    """One run is recorded; batches that take other ways go through all stages too."""
    net = random_net(seed)
    batch = fresh(net.batches[0])
    given: dict[str, Any] = {"example_kw_inputs": batch} if isinstance(batch, dict) else {"example_inputs": batch}
    with readable(net):
        prepared = prepare(net.model, qconfig_setter=DEFAULT, method=PrepareMethod.JIT, out_dir=None, **given)
        calibrate(net, prepared)
        fake_runs = [net.run(prepared, batch) for batch in net.batches]
        converted = convert(prepared)
        for (x_fq, way_fq), batch in zip(fake_runs, net.batches, strict=True):
            x_q, way_q = net.run(converted, batch)
            if way_fq == way_q:
                assert_near(tensors_of(x_fq), tensors_of(x_q), bound=0.05)


@pytest.mark.parametrize("seed", [0, 10, 20, 30, 41])  # those of which no result is an object of a class
def test_random_net_exported_file_gives_the_same_integers(seed: int) -> None:
    net = random_net(seed)
    with readable(net), torch.no_grad():
        converted = all_stages(net, RECORD).converted
        batch = fresh(net.batches[0])
        assert_equals_onnx(converted, example=batch)
