"""Attention: scaled_dot_product_attention and MultiheadAttention out of integer products, a softmax and linears."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.errors import NotCalibratedError
from profiler.quant.affine import fake_quantize
from profiler.quant.fake_quant import FakeQuantize
from profiler.quant.ops.composite import (
    Composite,
    FakeQuantComposite,
    narrow_qconfig,
    times_constant,
    wide_qconfig,
)
from profiler.quant.ops.functional import FunctionOp, OutputQuant
from profiler.quant.ops.geometry import sizes_of
from profiler.quant.ops.pool import mean_codes
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qconfig import QConfig
from profiler.quant.qtensor import QTensor, to_float

BLOCKING = -1000.0
"""Float masks block a position with -inf or a large negative number: with this one exp is 0 in float32 already."""


@dataclass(frozen=True)
class Mask:
    """What is done to scores `[..., L, S]`.

    Attributes:
        blocked: True where a query may not look; its probability is exactly 0. None: nowhere.
        bias: finite numbers that are added to the scores (those of a float mask, zeros too), or None.
    """

    blocked: Tensor | None = None
    bias: Tensor | None = None

    @staticmethod
    def of(mask: Tensor | None, *, true_blocks: bool) -> Mask:
        """A mask as torch takes it.

        Args:
            mask: bool or float, broadcasts to the scores; a quantized one counts with its real values.
            true_blocks: what True in a bool mask means: blocked (MultiheadAttention), or allowed (the function).
        """
        if mask is None:
            return Mask()
        if mask.dtype == torch.bool:
            return Mask(mask if true_blocks else ~mask)
        values = to_float(mask)
        blocked = values <= BLOCKING
        return Mask(blocked, torch.where(blocked, 0.0, values))

    def __and__(self, other: Mask) -> Mask:
        """Both masks."""
        return Mask(_either(self.blocked, other.blocked, torch.logical_or), _either(self.bias, other.bias, torch.add))

    def reshaped(self, *shape: int) -> Mask:
        """Both parts in another shape."""
        parts = (None if part is None else part.reshape(shape) for part in (self.blocked, self.bias))
        return Mask(*parts)


class AttentionCore(Composite):
    """softmax(q k^T * scale + mask) v; children `scores`, `softmax`, `context`, and `bias` once a mask is float.

    The scale multiplies the scale of q's codes and costs nothing. The scores are int16, where the march has it.
    """

    scores: Any
    softmax: Any
    context: Any
    bias: Any
    biased_scores: Any

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, dropout: float
    ) -> tuple[Tensor, Tensor]:
        """Result `[..., L, D]` and probabilities `[..., L, S]`.

        Args:
            q: queries `[..., L, E]`.
            k: keys `[..., S, E]`.
            v: values `[..., S, D]`.
            mask: what is blocked and added.
            scale: positive factor of the scores.
            dropout: probability that a probability is dropped, 0 for none.
        """
        scores = self.scores(times_constant(q, scale), k.transpose(-2, -1))
        if mask.bias is not None:
            scores = self.biased(scores, mask.bias)
        weights = self.softmax(scores, blocked=mask.blocked)
        if dropout > 0:
            weights = F.dropout(weights, dropout)
        return self.context(weights, v), weights

    def add_core(self, qconfig: QConfig, like: nn.Module, output: QConfig) -> None:
        """Add the children; `output` is the qconfig of the result."""
        self.narrow, self.wide = narrow_qconfig(qconfig), wide_qconfig(qconfig)
        self.add_function("scores", "matmul", self.wide, like)
        self.add_function("softmax", "softmax", self.narrow, like, dim=-1)
        self.add_function("context", "matmul", output, like)

    def biased(self, scores: Tensor, bias: Tensor) -> Tensor:
        """Scores with a mask's finite part added; both children for it are made when one first comes."""
        self._make_bias()
        quantized = self.bias(bias) if isinstance(scores, QTensor) else bias
        result: Tensor = self.biased_scores(scores, quantized)
        return result

    def _make_bias(self) -> None:
        """Add the children `bias` and `biased_scores` of a fake-quant form.

        Raises:
            NotCalibratedError: an integer form has none.
        """
        if "bias" in self._modules:
            return
        form: Any = self
        if not isinstance(form, FakeQuantComposite):
            raise NotCalibratedError(
                f"{self._get_name()}: a float mask adds numbers to the scores, and calibration saw none; calibrate "
                "with such masks, then convert again"
            )
        form.add_stub("bias")
        form.add_function("biased_scores", "add", self.wide, self)
        for name in ("bias", "biased_scores"):
            form.join_siblings(name)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load; where the checkpoint has seen a mask's finite part, its children are made first."""
        if f"{prefix}bias.activation_post_process.scale" in state_dict:
            self._make_bias()
        super()._load_from_state_dict(state_dict, prefix, *args)


class _FunctionForm(AttentionCore, FunctionOp):
    """`F.scaled_dot_product_attention` as a module."""

    stands_for = FunctionOp

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """As the torch function: query `[..., L, E]`, key `[..., S, E]`, value `[..., S, D]` -> `[..., L, D]`."""
        mask = Mask.of(attn_mask, true_blocks=False)
        if is_causal:
            mask = mask & Mask(_causal(query.shape[-2], key.shape[-2], query.device))
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = _repeated_heads(key, groups), _repeated_heads(value, groups)
        factor = 1.0 / math.sqrt(sizes_of(query)[-1]) if scale is None else scale
        return self.attend(query, key, value, mask, factor, dropout_p)[0]

    def _get_name(self) -> str:
        return self.label


class IntegerAttentionFunction(_FunctionForm):
    """The function on codes."""


class FakeQuantAttentionFunction(_FunctionForm, FakeQuantComposite):
    """The function with every inner value fake-quantized."""

    integer_class = IntegerAttentionFunction
    output = "context"


class _ModuleForm(AttentionCore):
    """`nn.MultiheadAttention`: three input linears, the core on `[N, heads, L, E / heads]`, an output linear."""

    stands_for = nn.MultiheadAttention
    # read by torch's transformer layers, which then keep off their fast path
    in_proj_weight = in_proj_bias = None
    _qkv_same_embed_dim = False
    embed_dim: int
    num_heads: int
    dropout: float
    batch_first: bool
    q_proj: Any
    k_proj: Any
    v_proj: Any
    out_proj: Any

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As the torch module; `is_causal` is a hint there and means nothing without a mask."""
        is_batched = query.dim() == 3
        q, k, v = self._heads(self.q_proj(query)), self._heads(self.k_proj(key)), self._heads(self.v_proj(value))
        mask = self._mask(attn_mask, key_padding_mask, q.shape[0])
        dropout = self.dropout if self.training else 0.0
        context, weights = self.attend(q, k, v, mask, (self.embed_dim // self.num_heads) ** -0.5, dropout)
        merged = context.transpose(1, 2).reshape(q.shape[0], q.shape[2], self.embed_dim)
        merged = merged if self.batch_first or not is_batched else merged.transpose(0, 1)
        y: Tensor = self.out_proj(merged if is_batched else merged.squeeze(0))
        if not need_weights:
            return y, None
        shown = self._mean_over_heads(weights) if average_attn_weights else weights
        return y, shown if is_batched else shown.squeeze(0)

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, num_heads={self.num_heads}, batch_first={self.batch_first}"

    def _heads(self, y: Tensor) -> Tensor:
        """`[N, heads, L, E / heads]` of `[N, L, E]`, `[L, N, E]` or `[L, E]`."""
        if y.dim() == 2:
            y = y.unsqueeze(0)
        elif not self.batch_first:
            y = y.transpose(0, 1)
        return y.reshape(y.shape[0], y.shape[1], self.num_heads, self.embed_dim // self.num_heads).transpose(1, 2)

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, num: int) -> Mask:
        scores = Mask.of(attn_mask, true_blocks=True)
        if attn_mask is not None and attn_mask.dim() == 3:
            scores = scores.reshaped(num, self.num_heads, *attn_mask.shape[1:])
        keys = Mask.of(key_padding_mask, true_blocks=True)
        if key_padding_mask is not None:
            keys = keys.reshaped(num, 1, 1, key_padding_mask.shape[-1])
        return scores & keys

    def _mean_over_heads(self, weights: Tensor) -> Tensor:
        """Mean over axis 1, in steps of the probabilities."""
        if not isinstance(weights, QTensor):
            return weights.mean(1)
        if weights.holds_codes:
            return mean_codes(OutputQuant(weights.scale, self.softmax.out_info), weights, 1)
        mean, fake_quant = weights.plain.mean(1), self.softmax.activation_post_process
        is_rounded = isinstance(fake_quant, FakeQuantize) and fake_quant.is_rounding
        return weights.like(fake_quantize(mean, weights.scale, weights.info) if is_rounded else mean)


class IntegerMultiheadAttention(_ModuleForm):
    """MultiheadAttention on codes."""


class FakeQuantMultiheadAttention(_ModuleForm, FakeQuantComposite):
    """MultiheadAttention with every inner value fake-quantized."""

    integer_class = IntegerMultiheadAttention
    output = "out_proj"


def _attention_function(
    module: nn.Module, function: str, bound: dict[str, Any], label: str, qconfig: QConfig
) -> nn.Module:
    new = FakeQuantAttentionFunction(function, None, bound, label)
    new.add_core(qconfig, module, qconfig)
    new.train(module.training)
    return new


def _multihead_attention(module: nn.MultiheadAttention, qconfig: QConfig) -> nn.Module:
    new = FakeQuantMultiheadAttention()
    new.embed_dim, new.num_heads = module.embed_dim, module.num_heads
    new.dropout, new.batch_first = module.dropout, module.batch_first
    if module._qkv_same_embed_dim:
        weights = module.in_proj_weight.chunk(3)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    in_bias: Any = module.in_proj_bias  # None with bias=False, which torch's annotation leaves out
    biases = (None,) * 3 if in_bias is None else in_bias.chunk(3)
    narrow = narrow_qconfig(qconfig)
    for name, weight, bias in zip(("q_proj", "k_proj", "v_proj"), weights, biases, strict=True):
        new.add_linear(name, weight, bias, narrow, module)
    new.add_core(qconfig, module, narrow)
    new.add_linear("out_proj", module.out_proj.weight, module.out_proj.bias, qconfig, module)
    new.train(module.training)
    return new


def _refusal(module: nn.MultiheadAttention) -> str:
    """Why a MultiheadAttention stays in float, or ""."""
    if module.bias_k is not None or module.bias_v is not None:
        return "add_bias_kv=True has no quantized form: runs in float"
    return "add_zero_attn=True has no quantized form: runs in float" if module.add_zero_attn else ""


def _causal(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """True above the diagonal `[L, S]`: a query sees its own position and those before."""
    return torch.arange(num_keys, device=device) > torch.arange(num_queries, device=device).unsqueeze(1)


def _repeated_heads(x: Tensor, times: int) -> Tensor:
    """`[..., H, S, D]` with every head repeated in place: `[..., H * times, S, D]`."""
    shape = (*x.shape[:-2], times, *x.shape[-2:])
    return x.unsqueeze(-3).expand(shape).flatten(-4, -3)


def _either(first: Tensor | None, second: Tensor | None, both: Any) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    result: Tensor = both(first, second)
    return result


ATTENTION = register(
    OpSpec("scaled_dot_product_attention", Family.COMPOSITE, functions=("scaled_dot_product_attention",),
           function_form=_attention_function, plain_arguments=((3, "attn_mask"),),
           note="int16 scores (int8 where the march has no int16), integer softmax; masked positions get exactly 0")
)  # fmt: skip
MULTIHEAD_ATTENTION = register(
    OpSpec("multihead_attention", Family.COMPOSITE, modules=(nn.MultiheadAttention,), fake_quant=_multihead_attention,
           refusal=_refusal, plain_arguments=((3, "key_padding_mask"), (5, "attn_mask")),
           note="linears, scaled_dot_product_attention and a linear inside; `add_bias_kv`, `add_zero_attn` stay float")
)  # fmt: skip
