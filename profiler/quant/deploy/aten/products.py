"""Convolutions and matrix products: integer operators where float values carry integer codes, else float ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from profiler.quant.deploy.emitters import Emission, emits, shape_of
from profiler.quant.deploy.graph import Value, constant
from profiler.quant.deploy.integer_products import integer_conv, integer_matmul


@emits("convolution.default", "_convolution.default")
def convolution(
    g: Emission,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    *_: bool,
) -> Value:
    """Convolution of any number of dimensions, also transposed."""
    num_spatial = len(shape_of(weight)) - 2
    stride, padding, dilation, output_padding = (
        list(v) * (num_spatial if len(v) == 1 else 1) for v in (stride, padding, dilation, output_padding)
    )
    product = integer_conv(g, x, weight, stride, padding, dilation, transposed, output_padding, groups)
    if product is not None:
        return _with_bias(g, g.cast(product, g.out.dtype), bias, num_spatial)
    single = torch.float32 if g.out.dtype == torch.float64 else g.out.dtype  # no kernel for float64
    operands = [None if v is None else g.cast(v, single) for v in (x, weight, bias)]
    attributes = {"strides": stride, "pads": [*padding, *padding], "dilations": dilation, "group": groups}
    if transposed:
        y = g.node("ConvTranspose", *operands, output_padding=output_padding, **attributes)
    else:
        y = g.node("Conv", *operands, **attributes)
    return g.cast(y, g.out.dtype)


def _with_bias(g: Emission, product: Value, bias: Value | None, num_spatial: int) -> Value:
    if bias is None:
        return product
    return g.binary("Add", product, g.reshape(bias, [-1, *[1] * num_spatial]))


@emits("mm.default", "bmm.default", "_int_mm.default", "mv.default", "dot.default")
def matmul(g: Emission, x: Value, other: Value) -> Value:
    """Matrix product."""
    product = integer_matmul(g, x, other)
    if product is not None:
        return g.cast(product, g.out.dtype)
    return g.node("MatMul", g.cast(x, g.out.dtype), g.cast(other, g.out.dtype))


@emits("addmm.default", "baddbmm.default")
def addmm(g: Emission, bias: Value, x: Value, other: Value, *, beta: Any = 1, alpha: Any = 1) -> Value:
    """`beta * bias + alpha * (x @ other)`."""
    product = matmul(g, x, other)
    if alpha != 1:
        product = g.binary("Mul", product, alpha)
    if beta == 0:
        return product
    return g.binary("Add", product, bias if beta == 1 else g.binary("Mul", bias, beta))


@emits(
    "_scaled_dot_product_flash_attention_for_cpu.default",
)
def attention(
    g: Emission,
    query: Value,
    key: Value,
    value: Value,
    *args: Any,
    attn_mask: Value | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    **kwargs: Any,
) -> tuple[Value, None]:
    """`softmax(q k^T * scale + mask) v` in float."""
    is_math = "math" in str(g.run)
    names = ("attn_mask", "dropout_p", "is_causal") if is_math else ("dropout_p", "is_causal")
    given = dict(zip(names, args, strict=False))
    mask, is_causal = given.get("attn_mask", attn_mask), given.get("is_causal", is_causal)
    factor = shape_of(query)[-1] ** -0.5 if scale is None else scale
    rank = len(shape_of(key))
    scores = g.node("MatMul", g.binary("Mul", query, factor), g.transpose(key, [*range(rank - 2), rank - 1, rank - 2]))
    if is_causal:
        allowed = torch.ones(shape_of(query)[-2], shape_of(key)[-2], dtype=torch.bool).tril()
        scores = g.where(constant(allowed), scores, float("-inf"), scores.dtype)
    if mask is not None and mask.dtype == torch.bool:
        scores = g.where(mask, scores, float("-inf"), scores.dtype)
    elif mask is not None:
        scores = g.binary("Add", scores, mask)
    return g.node("MatMul", g.node("Softmax", scores, axis=-1), value), None
