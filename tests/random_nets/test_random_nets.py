"""What must hold for every network: nothing raises, nothing of the user's changes, stages agree; seeds tell which."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor, nn

from profiler.errors import NotCalibratedError, PrepareError, UnsupportedOpError
from profiler.quant.naming import op_name
from profiler.quant.states import FakeQuantState, named_fake_quants, set_fake_quantize
from tests.random_nets.generator import Net, random_net, tensors_of
from tests.random_nets.stages import (
    DEFAULT,
    EAGER,
    FX,
    RECORD,
    FrontEnd,
    Stages,
    all_stages,
    same_bits,
    snapshot,
)

QUICK, HEAVY = range(50), range(50, 500)
SEEDS = [*QUICK, *(pytest.param(seed, marks=pytest.mark.heavy) for seed in HEAVY)]
# A function gets two weights in its two runs; nothing that is read has a quantized form.
UNPREPARED = ("in different runs; give each weight a module of its own", "the model has no fake quants")
# What the eager front end may refuse: it asks for a stub before each float operand, and for data that reaches every op.
REFUSALS = {
    UnsupportedOpError: (
        "operands are partly float",
        "got Tensor with float values",
        "does not fit into",
        "the two have different scales",
    ),
    NotCalibratedError: ("activations have no scale", "no scale is known"),
}


@contextmanager
def readable(net: Net) -> Iterator[None]:
    """Failures print the seed and the text of the network."""
    try:
        yield
    except Exception as error:
        text = f"{type(error).__name__}: {error}\nrandom_net({net.seed}) is\n{net.code}"
        raise AssertionError(text) from error


def a_net(seed: int, front_end: FrontEnd) -> Net:
    """The network of a seed as a front end takes it."""
    return random_net(seed, traceable=front_end.traceable, stubs=front_end.stubs)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("front_end", [FX, RECORD], ids=lambda f: f.name)
def test_random_net_goes_to_integers_and_stages_agree(front_end: FrontEnd, seed: int) -> None:
    check(a_net(seed, front_end), front_end)


def check(net: Net, front_end: FrontEnd) -> None:
    """All stages of a network, what it refuses, and what must be equal."""
    before = snapshot(net.model)
    with readable(net):
        try:
            stages = all_stages(net, front_end)
        except PrepareError as error:
            assert any(kind in str(error) for kind in UNPREPARED)  # noqa: PT017
            return
        assert snapshot(net.model) == before
        assert_stages_agree(net, stages)
        if net.seed % 5 == 0:
            assert_copies_are_equal(net, front_end, stages)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("front_end", [FX, RECORD, EAGER], ids=lambda f: f.name)
def test_random_net_without_qconfig_equals_the_model(front_end: FrontEnd, seed: int) -> None:
    net = a_net(seed, front_end)
    with readable(net):
        try:
            prepared = front_end.prepare(net, None)
        except PrepareError as error:
            assert "in different runs; give each weight a module of its own" in str(error)  # noqa: PT017
            return
        for batch in net.batches:
            assert same_bits(net.run(prepared, batch), net.run(net.model, batch))


@pytest.mark.parametrize("seed", SEEDS)
def test_random_net_eager_refuses_only_what_it_says(seed: int) -> None:
    net = a_net(seed, EAGER)
    before = snapshot(net.model)
    with readable(net), suppress_refusals():
        all_stages(net, EAGER)
    assert snapshot(net.model) == before


@contextmanager
def suppress_refusals() -> Iterator[None]:
    """Errors that the eager front end raises on purpose, with a message that says so, are no failures."""
    try:
        yield
    except tuple(REFUSALS) as error:
        if not any(kind in str(error) for kind in REFUSALS[type(error)]):
            raise


@pytest.mark.parametrize("seed", SEEDS)
def test_random_net_by_fx_and_record_is_the_same(seed: int) -> None:
    """Every bit of scales, those of automatic stubs too, and of outputs."""
    net = a_net(seed, FX)
    with readable(net):
        try:
            traced = all_stages(net, FX)
        except PrepareError as error:  # of what is read nothing has a quantized form; a record has the rest too
            assert "the model has no fake quants" in str(error)  # noqa: PT017
            return
        recorded = all_stages(net, RECORD)
        scales, of_record = scales_of(traced.prepared), scales_of(recorded.prepared)
        # a recorded model also runs what nobody reads, a trace leaves it out
        assert scales == {name: of_record[name] for name in scales}
        assert stub_scales_of(traced.prepared) <= stub_scales_of(recorded.prepared)
        assert same_bits(traced.fake_runs, recorded.fake_runs)
        assert same_bits(traced.integer_runs, recorded.integer_runs)


def scales_of(prepared: nn.Module) -> dict[str, tuple[float, ...]]:
    """Scales of the ops by name; stubs have names of their own in each front end."""
    return {
        f"{op_name(path.rpartition('.')[0])}.{path.rpartition('.')[2]}": tuple(fake_quant.scale.tolist())
        for path, fake_quant in named_fake_quants(prepared)
        if "_activation_post_process." not in path
    }


def stub_scales_of(prepared: nn.Module) -> set[tuple[float, ...]]:
    """Scales of automatic stubs that got float values."""
    named = named_fake_quants(prepared)
    return {tuple(fq.scale.tolist()) for path, fq in named if "_activation_post_process." in path and fq.is_calibrated}


def assert_stages_agree(net: Net, stages: Stages) -> None:
    """Shapes and dtypes are the model's; integers are fake quant's, which are near the model's, on the same way.

    In a discrete net (argmax, comparisons) one code may choose another branch of values, which later layers magnify.
    """
    for (x, way), (x_fq, way_fq), (x_q, way_q) in zip(
        stages.float_runs, stages.fake_runs, stages.integer_runs, strict=True
    ):
        if way_fq == way_q:
            assert_near(tensors_of(x_fq), tensors_of(x_q), bound=0.5 if net.is_discrete else 0.05)
        if way == way_fq:
            assert_near(tensors_of(x), tensors_of(x_fq), bound=3.0 if net.is_discrete else 0.5)


def assert_near(reference: list[Tensor], test: list[Tensor], *, bound: float) -> None:
    """Plain tensors of the same kind; the relative rms error of those that are float is below a bound."""
    assert len(reference) == len(test)
    for x, y in zip(reference, test, strict=True):
        assert type(y) is Tensor
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        if x.is_floating_point():
            assert float((y - x).norm()) <= bound * float(x.norm()) + 1e-6


def assert_copies_are_equal(net: Net, front_end: FrontEnd, stages: Stages) -> None:
    """A deep copy, a pickle and a checkpoint give every bit of the outputs."""
    pairs: list[tuple[nn.Module, Any]] = [(stages.prepared, stages.fake_runs), (stages.converted, stages.integer_runs)]
    copiers: list[Callable[[Any], Any]] = [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
    for model, runs in pairs:
        for copied in (copier(model) for copier in copiers):
            assert same_bits([net.run(copied, batch) for batch in net.batches], runs)
    loaded = front_end.prepare(net, DEFAULT).eval()
    loaded.load_state_dict(stages.prepared.state_dict())
    set_fake_quantize(loaded, FakeQuantState.VALIDATION)
    assert same_bits([net.run(loaded, batch) for batch in net.batches], stages.fake_runs)
    assert same_bits([net.run(front_end.convert(loaded), b) for b in net.batches], stages.integer_runs)


def test_random_net_is_the_same_for_the_same_seed() -> None:
    nets = [random_net(11), random_net(11)]
    assert nets[0].code == nets[1].code
    assert snapshot(nets[0].model)[0] == snapshot(nets[1].model)[0]
    assert same_bits(nets[0].batches, nets[1].batches)


def test_random_net_calibration_sees_other_ways_too() -> None:
    ways = set()
    for seed in range(20):
        net = random_net(seed)
        ways.add(len({str(net.run(net.model, batch)[1]) for batch in net.batches}))
    assert max(ways) == 3
