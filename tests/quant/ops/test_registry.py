from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from profiler.errors import RegistryError
from profiler.quant.ops.registry import Family, OpSpec, all_specs, get_spec, register, spec_of_function, spec_of_module


@pytest.mark.parametrize("name", [spec.name for spec in all_specs()])
def test_operator_registered_has_its_test_file(name: str) -> None:
    assert (Path(__file__).parent / f"test_{name}.py").is_file()


@pytest.mark.parametrize("spec", all_specs(), ids=lambda spec: spec.name)
def test_operator_registered_has_the_forms_of_its_family(spec: OpSpec) -> None:
    if spec.family is Family.FUNCTION:
        assert spec.float_fn is not None
        assert spec.integer_fn is not None
        assert not spec.modules or spec.bind is not None
    if spec.family is Family.COMPOSITE:
        assert spec.fake_quant is not None or spec.function_form is not None
    if spec.family in (Family.GEMM, Family.STUB):
        assert spec.fake_quant is not None
        assert spec.modules
    assert spec.note


def test_register_name_taken_is_refused() -> None:
    with pytest.raises(RegistryError, match="'conv' is registered twice"):
        register(OpSpec("conv", Family.GEMM))


def test_register_function_taken_is_refused_and_leaves_no_trace() -> None:
    before = all_specs()
    with pytest.raises(RegistryError, match="add"):
        register(OpSpec("plus", Family.FUNCTION, functions=("add",)))
    assert all_specs() == before


def test_get_spec_unknown_lists_the_operators() -> None:
    with pytest.raises(RegistryError, match=r"'convolve' is not registered; there are .*conv, conv1d"):
        get_spec("convolve")


def test_spec_of_module_subclass_counts_only_without_own_forward() -> None:
    class Same(nn.Conv2d):
        pass

    class Other(nn.Conv2d):
        def forward(self, x):  # type: ignore[no-untyped-def]
            return x

    assert spec_of_module(Same(1, 1, 1)) is get_spec("conv")
    assert spec_of_module(Other(1, 1, 1)) is None


def test_spec_of_function_unknown_is_none() -> None:
    assert spec_of_function("erfinv") is None
