"""Embedding: rows of a quantized table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.quant.affine import QInfo, quantize
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.modules import QuantOp, adopt, place_like
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qconfig import QConfig
from profiler.quant.qtensor import QTensor, handles, to_float


class FakeQuantEmbedding(QuantOp, nn.Embedding):
    """Embedding with a fake-quantized table; the output carries the table's scale."""

    weight_fake_quant: FakeQuantize

    @property
    def activation_post_process(self) -> FakeQuantize:
        """What quantizes the output: the table's own fake quant."""
        return self.weight_fake_quant

    def forward(self, input: Tensor) -> Tensor:
        """Rows `[..., D]` of the table as a QTensor."""
        fake_quant = self.weight_fake_quant
        rows = F.embedding(
            input,
            fake_quant.quantize_weight(self.weight),
            self.padding_idx,
            scale_grad_by_freq=self.scale_grad_by_freq,
            sparse=self.sparse,
        )
        return QTensor.wrap(rows, fake_quant.tensor_scale, fake_quant.dtype, is_rounded=fake_quant.is_rounding)

    def to_integer(self) -> IntegerEmbedding:
        """The integer form."""
        fake_quant = self.weight_fake_quant
        if not fake_quant.is_calibrated:
            fake_quant.calibrate_on(self.weight)
        module = adopt(IntegerEmbedding, self)
        module._modules.pop("weight_fake_quant", None)
        module._parameters.clear()
        codes = quantize(self.weight.detach(), fake_quant.tensor_scale, fake_quant.info)
        module.register_buffer("weight", codes)
        module.register_buffer("out_scale", fake_quant.tensor_scale.detach().clone())
        module.out_info, module.out_dtype = fake_quant.info, fake_quant.dtype
        return module

    def _get_name(self) -> str:
        return "Embedding"


class IntegerEmbedding(QuantOp, nn.Embedding):
    """Embedding whose table holds codes."""

    out_scale: Tensor
    out_info: QInfo
    out_dtype: str

    def forward(self, input: Tensor) -> Tensor:
        """Codes of the rows `[..., D]`."""
        return QTensor.wrap(_rows(self.weight, input), self.out_scale, self.out_dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, out={self.out_dtype}"

    def _get_name(self) -> str:
        return "Embedding"


@handles("embedding")
def embedding(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`F.embedding(indices, table)` on a quantized table: its rows, at its scale."""
    named = {**dict(zip(("input", "weight"), args, strict=False)), **kwargs}
    indices, table = named.pop("input"), named.pop("weight")
    if not isinstance(table, QTensor):
        return func(*to_float(args), **to_float(kwargs))
    if table.holds_codes:
        return table.like(_rows(table.plain, indices))
    return table.like(func(indices, table.plain, *args[2:], **named))


def _rows(table: Tensor, indices: Tensor) -> Tensor:
    picked = table.index_select(0, indices.reshape(-1).to(torch.int64))
    return picked.reshape(*indices.shape, table.shape[1])


def _embedding(module: Any, qconfig: QConfig) -> nn.Module:
    """The table is what the op gives, so it has the dtype of activations, and one scale."""
    if qconfig.activation is None or qconfig.weight is None:
        return module  # type: ignore[no-any-return]
    new = adopt(FakeQuantEmbedding, module)
    is_simple = getattr(qconfig.activation, "keywords", {}).get("power_of_two", False)
    factory = qconfig.weight.with_args(
        dtype=qconfig.activation_dtype, ch_axis=-1, qscheme=torch.per_tensor_symmetric, power_of_two=is_simple
    )
    new.weight_fake_quant = place_like(factory(), module)
    return new


def _refusal(module: nn.Embedding) -> str:
    return "max_norm rescales the table in each forward" if module.max_norm is not None else ""


EMBEDDING = register(
    OpSpec("embedding", Family.TABLE, functions=("embedding",), modules=(nn.Embedding,), fake_quant=_embedding,
           plain_arguments=((0, "input"),), keeps_scale=lambda args, kwargs: len(args) + len(kwargs) > 1,
           refusal=_refusal, note="one scale for the table; padding_idx; `max_norm` stays float")
)  # fmt: skip
