"""Functions with parameters (norms, PReLU) as modules: trained as in the float model, constants in the integer one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from profiler.quant.affine import QInfo
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.modules import QuantOp, adopt, make_activation
from profiler.quant.ops.functional import output_of, run_fake_quant, run_integer, take_output
from profiler.quant.ops.registry import get_spec
from profiler.quant.qconfig import QConfig
from profiler.quant.qtensor import QTensor

_M = TypeVar("_M", bound="FakeQuantWithParameters")


class FakeQuantWithParameters(QuantOp):
    """Base of the fake-quant forms; subclasses also extend the torch.nn class that they stand for.

    Parameters and buffers are those of the float module, under the same names; only the output is quantized.
    """

    spec_name = ""
    activation_post_process: FakeQuantize | None
    ran_in_float = False  # outside the stubs: a scale is then not missed
    unbatched_dim = -1  # number of dimensions of an input without a batch, where there may be one

    def operands(self) -> dict[str, Any]:
        """Keyword arguments of the function, with the present parameters."""
        bind = get_spec(self.spec_name).bind
        return bind(self) if bind is not None else {}

    def operands_for(self, input: Tensor) -> dict[str, Any]:
        """Keyword arguments for one input."""
        return self.operands()

    def forward(self, input: Tensor) -> Any:
        """The float function on real values, its output fake-quantized."""
        spec, operands = get_spec(self.spec_name), self.operands_for(input)
        result = _batched(input, self, lambda x: run_fake_quant(spec, (x,), operands, self.activation_post_process))
        self.ran_in_float = self.ran_in_float or not isinstance(result, QTensor)
        return result

    def to_integer(self) -> IntegerWithParameters:
        """The integer form."""
        module = adopt(IntegerWithParameters, self)
        module.take(self, self.operands())
        return module

    def _get_name(self) -> str:
        return self.base_name

    @property
    def base_name(self) -> str:
        """Name of the float class."""
        return type(self).__name__.removeprefix("FakeQuant")


class IntegerWithParameters(QuantOp):
    """Integer form: the parameters are float32 constants."""

    out_scale: Tensor | None
    out_info: QInfo | None
    out_dtype: str
    spec_name: str
    base_name: str
    unbatched_dim: int

    def take(self, module: FakeQuantWithParameters, operands: dict[str, Any]) -> None:
        """Set the function of the fake-quant form with these operands, and its output quantization."""
        self.spec_name, self.base_name = module.spec_name, module.base_name
        self.unbatched_dim = module.unbatched_dim
        self._parameters.clear()
        self._buffers.clear()
        self.constants = {name: value for name, value in operands.items() if not isinstance(value, Tensor)}
        self.tensors = [name for name in operands if name not in self.constants]
        for name in operands:
            self.__dict__.pop(name, None)
        for name in self.tensors:
            self.register_buffer(name, operands[name].detach().clone())
        take_output(self, module.activation_post_process)

    def forward(self, input: Tensor) -> Any:
        """Codes in, codes out."""
        operands = {**self.constants, **{name: getattr(self, name) for name in self.tensors}}
        spec, out = get_spec(self.spec_name), output_of(self)
        return _batched(input, self, lambda x: run_integer(spec, (x,), operands, out, self.base_name))

    def extra_repr(self) -> str:
        shapes = (f"{name}={list(getattr(self, name).shape)}" for name in self.tensors)
        return ", ".join([*(f"{name}={value}" for name, value in self.constants.items()), *shapes])

    def _get_name(self) -> str:
        return self.base_name


def with_parameters(cls: type[_M], module: nn.Module, qconfig: QConfig) -> _M:
    """Fake-quant form of a float module with parameters."""
    new = adopt(cls, module)
    new.activation_post_process = make_activation(qconfig, module)
    return new


def _batched(x: Tensor, module: Any, run: Callable[[Tensor], Any]) -> Any:
    return run(x.unsqueeze(0)).squeeze(0) if x.dim() == module.unbatched_dim else run(x)
