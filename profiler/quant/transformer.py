"""Torch's transformer layers with forwards that can be quantized: no fused kernel, nested tensors or mask checks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class PlainEncoderLayer(nn.TransformerEncoderLayer):
    """TransformerEncoderLayer that always calls its parts; torch's fast path computes all of them in one kernel."""

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """As torch's slow path."""
        x = src
        if self.norm_first:
            x = x + self._sa_block(self.norm1(x), src_mask, src_key_padding_mask, is_causal=is_causal)
            return x + self._ff_block(self.norm2(x))
        x = self.norm1(x + self._sa_block(x, src_mask, src_key_padding_mask, is_causal=is_causal))
        result: Tensor = self.norm2(x + self._ff_block(x))
        return result


class PlainEncoder(nn.TransformerEncoder):
    """TransformerEncoder that hands the masks to its layers as they are."""

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """The layers in turn, then the norm."""
        output = src
        for layer in self.layers:
            output = layer(output, mask, src_key_padding_mask, is_causal is True)
        return output if self.norm is None else self.norm(output)


class PlainDecoder(nn.TransformerDecoder):
    """TransformerDecoder that hands the masks to its layers as they are."""

    def forward(self, tgt: Tensor, memory: Tensor, *args: Any, tgt_is_causal: bool | None = None, **kw: Any) -> Tensor:
        """The layers in turn, then the norm."""
        output = tgt
        for layer in self.layers:
            output = layer(output, memory, *args, tgt_is_causal=tgt_is_causal is True, **kw)
        return output if self.norm is None else self.norm(output)


_PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    nn.TransformerEncoderLayer: PlainEncoderLayer,
    nn.TransformerEncoder: PlainEncoder,
    nn.TransformerDecoder: PlainDecoder,
}


def use_plain_forwards(model: nn.Module) -> None:
    """Give torch's transformer layers in a model their plain forwards, in place; parameters and names stay."""
    for module in model.modules():
        module.__class__ = _PLAIN.get(type(module), type(module))
