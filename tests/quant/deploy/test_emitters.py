"""Every emitter against torch: the same function on the same numbers in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiler.quant.deploy import recorder
from profiler.quant.deploy.aten import emitter_names, emitter_of
from profiler.quant.deploy.export import record_model
from tests.quant.deploy.composed_cases import COMPOSED
from tests.quant.deploy.functions import Function, assert_same_in_onnx, ints, rand

X = rand(2, 4, 6, 6)
POSITIVE = X.abs() + 0.1
ROW = rand(3, 5)
CODES = ints(2, 4, 6, 6)
CODES16 = ints(2, 4, 6, 6, low=-30000, high=30000, dtype=torch.int16)
UNIT = X.clamp(-0.99, 0.99)
F64 = X.double()

Case = tuple[Callable[..., Any], tuple[Tensor, ...]]
ELEMENTWISE: dict[str, Case] = {
    **{f"{n}": (getattr(torch, n), (X,)) for n in "ceil floor round exp tanh sigmoid erf sin cos tan atan sinh cosh "
       "asinh abs neg sign reciprocal trunc square exp2 expm1 relu isnan isinf logical_not".split()},
    **{f"{n}_positive": (getattr(torch, n), (POSITIVE,)) for n in "sqrt rsqrt log log2 log10 log1p".split()},
    **{f"{n}_unit": (getattr(torch, n), (UNIT,)) for n in "asin acos atanh".split()},
    **{f"{n}_f64": (getattr(torch, n), (F64,)) for n in "round floor ceil exp tanh sign abs".split()},
    **{f"{n}_{t}": (getattr(torch, n), (X, X.flip(1))) for t in ("xy",) for n in
       "add sub mul div maximum minimum eq ne lt le gt ge atan2 remainder fmod".split()},
    **{f"{n}_int8": (getattr(torch, n), (CODES, CODES.flip(1))) for n in "add sub mul maximum minimum eq lt".split()},
    **{f"{n}_int16": (getattr(torch, n), (CODES16, CODES16.flip(1))) for n in "add sub mul maximum ge ne".split()},
    **{f"{n}_scalar": (lambda x, n=n: getattr(torch, n)(x, 0.3), (X,)) for n in
       "add sub mul div eq ne lt le gt ge remainder fmod".split()},
    "acosh": (torch.acosh, (POSITIVE + 1,)),
    "rsub": (lambda x: 1.5 - x, (X,)),
    "alpha": (lambda x, y: torch.add(x, y, alpha=2.5), (X, X.flip(0))),
    "sub_alpha": (lambda x, y: torch.sub(x, y, alpha=2), (CODES.int(), CODES.int().flip(1))),
    "int_div_true": (lambda x: x / 3, (CODES,)),
    "int_mul_float": (lambda x: x * 0.5, (CODES16,)),
    "mixed_dtypes": (lambda x, y: x + y, (X, CODES)),
    "wide_mixed": (lambda x, y: x * y, (X, F64)),
    "div_floor": (lambda x, y: torch.div(x, y, rounding_mode="floor"), (X, X.flip(1))),
    "div_trunc": (lambda x, y: torch.div(x, y, rounding_mode="trunc"), (X, X.flip(1))),
    "int_div_floor": (lambda x: torch.div(x, 7, rounding_mode="floor"), (CODES.int(),)),
    "int_div_trunc": (lambda x: torch.div(x, -7, rounding_mode="trunc"), (CODES.long(),)),
    "int_floordiv": (lambda x: x // -3, (CODES16,)),
    "int_remainder": (lambda x: x % 7, (CODES.long(),)),
    "int_remainder_negative": (lambda x: x % -7, (CODES,)),
    "int_fmod": (lambda x: torch.fmod(x, 7), (CODES.int(),)),
    "round_decimals": (lambda x: torch.round(x, decimals=2), (X,)),
    "round_int": (lambda x: torch.round(x), (CODES,)),
    **{f"pow_{e}": (lambda x, e=e: x**e, (POSITIVE,)) for e in (2, 3, 0.5, -0.5, -1, -2, 2.3)},
    "pow_tensor": (torch.pow, (POSITIVE, X)),
    "pow_scalar_base": (lambda x: 2.0**x, (X,)),
    "clamp": (lambda x: x.clamp(-0.5, 0.7), (X,)),
    "clamp_low": (lambda x: x.clamp(min=-0.5), (X,)),
    "clamp_int8": (lambda x: x.clamp(-50, 60), (CODES,)),
    "clamp_int16": (lambda x: x.clamp(-500, 600), (CODES16,)),
    "clamp_int64": (lambda x: x.clamp(-50, 60), (CODES.long(),)),
    "clamp_min": (lambda x: x.clamp_min(0), (CODES16,)),
    "clamp_max": (lambda x: x.clamp_max(0.5), (F64,)),
    "clamp_tensor": (lambda x, y: torch.clamp(x, min=y, max=y + 1), (X, X.flip(1))),
    "where": (lambda x, y: torch.where(x > 0, x, y), (X, X.flip(1))),
    "where_int16": (lambda x, y: torch.where(x > 0, x, y), (CODES16, CODES16.flip(1))),
    "where_scalar": (lambda x: torch.where(x > 0, x, 0.25), (X,)),
    "masked_fill": (lambda x: x.masked_fill(x < 0, -7.0), (X,)),
    "masked_fill_int8": (lambda x: x.masked_fill(x < 0, -7), (CODES,)),
    "logical": (lambda x, y: (x > 0) & (y > 0) | ~(x < 0.5), (X, X.flip(1))),
    "logical_and": (lambda x, y: torch.logical_xor(x > 0, torch.logical_and(x, y)), (X, X.flip(1))),
    "bitwise": (lambda x: (x & 15) ^ (x | 3) ^ 5, (CODES.int(),)),
    "bitwise_not": (torch.bitwise_not, (CODES.int(),)),
    "shift_left_function": (lambda x: torch.bitwise_left_shift(x, 2), (CODES.int(),)),
    "shift_right_function": (lambda x: torch.bitwise_right_shift(x, 2), (CODES.int(),)),
    "shift_operators": (lambda x: (x << torch.arange(6)) + (x >> torch.arange(6)), (CODES.long(),)),
    "shift_by_tensor": (lambda x: torch.bitwise_left_shift(x, torch.arange(6)), (CODES.long(),)),
    "shift_right_by_tensor": (lambda x: torch.bitwise_right_shift(x, torch.arange(6)), (CODES.long(),)),
    "logical_or": (torch.logical_or, (X > 0, X.flip(1) > 1)),
    "masked_fill_tensor": (lambda x: x.masked_fill(x < 0, torch.tensor(2.0)), (X,)),
    "clamp_max_tensor": (lambda x: torch.clamp_max(x, torch.full((6,), 0.5)), (X,)),
    "inference_mode": (torch.inference_mode()(lambda x: F.linear(x, rand(7, 6)).flatten(1).relu() * 2), (X,)),
    "shift_left": (lambda x: x << 3, (CODES.long(),)),
    "shift_right": (lambda x: x >> 3, (CODES.long(),)),
    "to_int": (lambda x: (x * 20).to(torch.int8), (X,)),
    "to_bool": (lambda x: x.to(torch.bool), (CODES,)),
    "to_half": (lambda x: x.half().float(), (X,)),
    "isfinite": (lambda x: torch.isfinite(x / x.round()), (X,)),
    "lerp": (lambda x, y: torch.lerp(x, y, 0.3), (X, X.flip(1))),
    "addcmul": (lambda x, y: torch.addcmul(x, y, y, value=0.5), (X, X.flip(1))),
    "nan_to_num": (lambda x: torch.nan_to_num(x / x.round(), 0.0, 1.0, -1.0), (X,)),
    "like": (lambda x: torch.ones_like(x) + x + torch.zeros_like(x) + x.new_full((1,), 2.0), (X,)),
}  # fmt: skip
ACTIVATIONS: dict[str, Case] = {
    **{n: (getattr(F, n), (X * 3,)) for n in "relu relu6 gelu silu mish hardswish hardsigmoid leaky_relu elu selu celu "
       "softplus logsigmoid softsign tanhshrink hardtanh softshrink hardshrink rrelu".split()},
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), (X,)),
    "prelu": (lambda x, w: F.prelu(x, w), (X, rand(4))),
    "hardtanh_bounds": (lambda x: F.hardtanh(x, -0.3, 0.4), (X,)),
    "softmax": (lambda x: x.softmax(1), (X,)),
    "log_softmax": (lambda x: x.log_softmax(-1), (X,)),
    "softmin": (lambda x: F.softmin(x, dim=-1), (X,)),
    "glu": (lambda x: F.glu(x, 1), (X,)),
    "threshold": (lambda x: F.threshold(x, 0.1, 20.0), (X,)),
    "normalize": (lambda x: F.normalize(x, dim=1), (X,)),
    "fake_quantize": (lambda x: torch.fake_quantize_per_tensor_affine(x, 0.03, 2, -128, 127), (X * 3,)),
    "fake_quantize_tensor": (lambda x: torch.fake_quantize_per_tensor_affine(
        x, torch.tensor(0.03), torch.tensor(0, dtype=torch.int32), -128, 127), (X * 3,)),
    "fake_quantize_channel": (lambda x: torch.fake_quantize_per_channel_affine(
        x, torch.tensor([0.1, 0.02, 0.3, 0.01]), torch.zeros(4, dtype=torch.int32), 1, -128, 127), (X,)),
    "dropout": (lambda x: F.dropout(x, training=False), (X,)),
}  # fmt: skip
SHAPES: dict[str, Case] = {
    "view": (lambda x: x.view(2, -1), (X,)),
    "reshape_after_permute": (lambda x: x.permute(0, 2, 3, 1).reshape(-1, 4), (X,)),
    "flatten": (lambda x: x.flatten(1), (CODES16,)),
    "transpose": (lambda x: x.transpose(1, -1) + 1, (X,)),
    "t": (lambda x: x.t() * 2, (ROW,)),
    "squeeze": (lambda x: x.unsqueeze(0).squeeze().unsqueeze(-1).squeeze(-1), (X,)),
    "expand": (lambda x: x[:, :1].expand(-1, 3, -1, -1) * 1, (X,)),
    "slice": (lambda x: x[:, 1:3, ::2, -4:-1], (X,)),
    "slice_codes": (lambda x: x[..., 1::3], (CODES,)),
    "select": (lambda x: x[:, -1, 2], (X,)),
    "split": (lambda x: x.split(3, 2)[::-1], (X,)),
    "split_uneven": (lambda x: x.split([1, 4, 1], -1), (CODES,)),
    "chunk": (lambda x: x.chunk(4, 3), (X,)),
    "unbind": (lambda x: x.unbind(1), (X,)),
    "cat": (lambda x, y: torch.cat([x, y, x], 1), (X, X.flip(1))),
    "cat_dtypes": (lambda x, y: torch.cat([x, y], 1), (X, CODES)),
    "stack": (lambda x, y: torch.stack([x, y], -1), (CODES, CODES.flip(1))),
    "repeat": (lambda x: x.repeat(2, 1, 1, 3), (X,)),
    "tile": (lambda x: x.tile(2, 2), (ROW,)),
    "repeat_interleave": (lambda x: x.repeat_interleave(3, 1), (ROW,)),
    "pad": (lambda x: F.pad(x, (1, 2, 0, 3)), (CODES16,)),
    "pad_value": (lambda x: F.pad(x, (1, -2, -1, 3), value=1.5), (X,)),
    **{f"pad_{m}": (lambda x, m=m: F.pad(x, (1, 2, 3, 0), mode=m), (X,)) for m in
       ("reflect", "replicate", "circular")},
    "pad_reflect_1d": (lambda x: F.pad(x, (2, 1), mode="reflect"), (ROW[None],)),
    "pad_replicate_1d": (lambda x: F.pad(x, (2, 1), mode="replicate"), (ROW[None],)),
    "pad_reflect_3d": (lambda x: F.pad(x[None], (1, 1, 2, 0, 0, 1), mode="reflect"), (X,)),
    "pad_replicate_3d": (lambda x: F.pad(x[None], (1, 1, 2, 0, 0, 1), mode="replicate"), (X,)),
    "flip": (lambda x: x.flip(1, 3), (CODES,)),
    "roll": (lambda x: x.roll((1, -2), (2, 3)), (X,)),
    "roll_flat": (lambda x: x.roll(3), (X,)),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), (CODES,)),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 3), (X,)),
    "channel_shuffle": (lambda x: F.channel_shuffle(x, 2), (X,)),
    "tril": (lambda x: x.tril(1) + x.triu(2), (X,)),
    "detach": (lambda x: x.detach() + 1, (X,)),
    "alias": (lambda x: torch.ops.aten.alias(x) + 1, (X,)),
    "diagonal": (lambda x: x.diagonal(0, 2, 3) * 2, (X,)),
    "unfold": (lambda x: x.unfold(2, 3, 2).sum(-1), (X,)),
    "im2col": (lambda x: F.unfold(x, 3, padding=1, stride=2), (X,)),
    "fold": (lambda x: F.fold(x, (4, 4), 2, stride=2), (rand(1, 8, 4),)),
    "movedim": (lambda x: x.movedim(1, -1) + 1, (X,)),
    "as_strided": (lambda x: x.as_strided((3, 3), (1, 4), 2) + 1, (X,)),
    "rot90": (lambda x: x.rot90(1, (2, 3)), (X,)),
    "einsum": (lambda x, y: torch.einsum("nchw,nkhw->nck", x, y), (X, X.flip(1))),
    "meshgrid": (lambda x: torch.meshgrid(x[0], x[1], indexing="ij")[0] * 1, (ROW,)),
    "zero_dim": (lambda x: x.sum() * x, (ROW,)),
}  # fmt: skip
INDEX = torch.tensor([[2, 0, 1], [1, 1, 0]])
INDICES: dict[str, Case] = {
    "index_select": (lambda x: x.index_select(1, torch.tensor([2, 0, 2])), (X,)),
    "table": (lambda x: torch.arange(256).mul(3)[x.long() + 128], (CODES,)),
    "table_select": (lambda x: rand(256).index_select(0, x.reshape(-1).int() + 128), (CODES,)),
    "embedding": (lambda i: F.embedding(i, rand(9, 4)), (ints(2, 5, low=0, high=9, dtype=torch.int64),)),
    "gather": (lambda x: x.gather(1, INDEX), (ROW,)),
    "take": (lambda x: x.take(torch.tensor([3, 1])), (ROW,)),
    "index_unsafe": (lambda x: torch.ops.aten._unsafe_index(x, [torch.tensor([1, 0])]), (ROW,)),
    "gather_traced": (lambda x: x.gather(1, x.argsort(1)), (ROW,)),
    "take_along": (lambda x: x.take_along_dim(x.argmax(1, keepdim=True), 1), (ROW,)),
    "scatter": (lambda x: torch.zeros(3, 5).scatter(1, INDEX, x), (ROW,)),
    "scatter_value": (lambda x: x.scatter(1, INDEX, 3.0), (ROW,)),
    "scatter_add": (lambda x: x.scatter_add(1, INDEX, x), (ROW,)),
    "index_one": (lambda x: x[:, torch.tensor([3, -1])], (X,)),
    "index_2d": (lambda x: x[INDEX], (ROW,)),
    "index_pair": (lambda x: x[:, torch.tensor([0, 3]), torch.tensor([5, 1])], (X,)),
    "index_apart": (lambda x: x[torch.tensor([0, 1]), :, torch.tensor([5, 1])], (X,)),
    "index_broadcast": (lambda x: x[torch.tensor([[0], [1]]), torch.tensor([3, 1, 0])], (X,)),
    "index_mask": (lambda x: x[:, torch.tensor([True, False, True, True])], (X,)),
    "mask_write": (lambda x: _write_mask(x), (X,)),
    "index_put": (lambda x: x.index_put((torch.tensor([0, 2]),), torch.ones(5)), (ROW,)),
    "index_put_pair": (lambda x: x.index_put((torch.tensor([0, 2]), torch.tensor([4, 1])), x[0, :2]), (ROW,)),
    "index_add": (lambda x: x.index_add(0, torch.tensor([0, 2]), x[:2]), (ROW,)),
    "index_put_add": (lambda x: x.index_put((torch.tensor([0, 2]),), torch.ones(5), accumulate=True), (ROW,)),
    "slice_scatter": (lambda x: x.slice_scatter(x[:, :2] * 2, 1, 2, 4), (ROW,)),
    "select_scatter": (lambda x: x.select_scatter(x[0] * 2, 0, 2), (ROW,)),
    "masked_select_const": (lambda x: x * torch.ones(4, 6, 6)[torch.ones(4, dtype=torch.bool)].sum(), (X,)),
}


def _write_mask(x: Tensor) -> Tensor:
    y = x.clone()
    y[y > 0.5] = 0.5
    return y


REDUCTIONS: dict[str, Case] = {
    "sum": (lambda x: (x.sum(), x.sum(1), x.sum((2, 3), keepdim=True)), (X,)),
    "sum_codes": (lambda x: (x.sum(1), x.sum(dtype=torch.int32)), (CODES16,)),
    "sum_bool": (lambda x: (x > 0).sum(1), (X,)),
    "mean": (lambda x: (x.mean(), x.mean(-1), x.mean((0, 2))), (X,)),
    "prod": (lambda x: (x.prod(), x.prod(1)), (ROW,)),
    "amax": (lambda x: (x.amax((1, 2)), x.amin(-1, keepdim=True), x.max(), x.min()), (X,)),
    "amax_int16": (lambda x: (x.amax((1, 2)), x.min()), (CODES16,)),
    "max_dim": (lambda x: (*x.max(1), *x.min(2, keepdim=True)), (X,)),
    "max_dim_codes": (lambda x: (*x.max(1), *x.min(2, keepdim=True)), (CODES16,)),
    "argmax": (lambda x: (x.argmax(), x.argmax(1), x.argmin(2, keepdim=True)), (CODES,)),
    "any": (lambda x: ((x > 2).any(), (x > 0).any(1), (x > -9).all(), (x > 0).all(-1, keepdim=True)), (X,)),
    "any_dims": (lambda x: (torch.any(x > 1, (1, 2)), torch.all(x > -1, (1, 2))), (X,)),
    "var_mean": (lambda x: torch.var_mean(x, 1), (X,)),
    "var": (lambda x: (x.var(1), x.std((2, 3), keepdim=True), x.var(correction=0)), (X,)),
    "norm": (lambda x: (x.norm(), x.norm(1, 1), x.norm(float("inf"), 1), x.norm(3, 1)), (X,)),
    "cumsum": (lambda x: x.cumsum(1), (X,)),
    "cumsum_int": (lambda x: x.cumsum(-1), (CODES,)),
    "topk": (lambda x: (*x.topk(2, 1), *x.topk(1, -1, largest=False)), (X,)),
    "topk_int16": (lambda x: x.topk(2, 1)[0], (CODES16,)),
    "sort": (lambda x: (*x.sort(1), *x.sort(-1, descending=True)), (X,)),
    "sort_stable": (lambda x: x.sort(dim=1, stable=True, descending=True), (CODES,)),
    "argsort": (lambda x: x.argsort(1), (X,)),
    "logsumexp": (lambda x: x.logsumexp(1), (X,)),
    "cdist": (lambda x: torch.cdist(x, x.flip(0) + 1, compute_mode="donot_use_mm_for_euclid_dist"), (ROW,)),
    "cosine": (lambda x, y: F.cosine_similarity(x, y), (X, X.flip(1))),
}
CUBE = rand(2, 3, 5, 6, 7)
POOLS: dict[str, Case] = {
    "max": (lambda x: F.max_pool2d(x, 2), (X,)),
    "max_int8": (lambda x: F.max_pool2d(x, 3, 2, 1), (CODES,)),
    "max_int16": (lambda x: F.max_pool2d(x.float(), 3, 2, 1).to(torch.int16), (CODES16,)),
    "max_ceil": (lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), (X,)),
    "max_dilated": (lambda x: F.max_pool2d(x, 2, 1, 0, 2), (X,)),
    "max_unbatched": (lambda x: F.max_pool2d(x[0], 2), (X,)),
    "max_1d": (lambda x: F.max_pool1d(x, 3, 2, 1), (ROW[None],)),
    "max_3d": (lambda x: F.max_pool3d(x, (2, 3, 2), 2, (1, 1, 0)), (CUBE,)),
    "avg": (lambda x: F.avg_pool2d(x, 2), (X,)),
    "avg_pad": (lambda x: F.avg_pool2d(x, 3, 2, 1), (X,)),
    "avg_no_pad_count": (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), (X,)),
    "avg_ceil": (lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), (X,)),
    "avg_ceil_no_pad": (lambda x: F.avg_pool2d(x, (2, 3), (3, 2), (1, 0), True, False), (X,)),
    "avg_divisor": (lambda x: F.avg_pool2d(x, 3, divisor_override=1), (F64,)),
    "avg_1d": (lambda x: F.avg_pool1d(x, 3, 2, 1), (ROW[None],)),
    "avg_3d": (lambda x: F.avg_pool3d(x, 2, 2, (1, 0, 1)), (CUBE,)),
    "adaptive": (lambda x: F.adaptive_avg_pool2d(x, (4, 5)), (X,)),
    "adaptive_one": (lambda x: F.adaptive_avg_pool2d(x, 1), (F64,)),
    "adaptive_1d": (lambda x: F.adaptive_avg_pool1d(x, 3), (ROW[None],)),
    "adaptive_3d": (lambda x: F.adaptive_avg_pool3d(x, (2, 3, 4)), (CUBE,)),
    "adaptive_max": (lambda x: F.adaptive_max_pool2d(x, (4, 5)), (X,)),
    "adaptive_max_3d": (lambda x: F.adaptive_max_pool3d(x, (2, 3, 4)), (CUBE,)),
    "lp_pool": (lambda x: F.lp_pool2d(x, 2.0, 2), (POSITIVE,)),
}
RESIZES: dict[str, Case] = {
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), (X,)),
    "nearest_size": (lambda x: F.interpolate(x, size=(9, 4)), (X,)),
    "nearest_exact": (lambda x: F.interpolate(x, size=(9, 4), mode="nearest-exact"), (X,)),
    "nearest_exact_1d": (lambda x: F.interpolate(x, 8, mode="nearest-exact"), (ROW[None],)),
    "nearest_exact_3d": (lambda x: F.interpolate(x, scale_factor=1.5, mode="nearest-exact"), (CUBE,)),
    "nearest_codes": (lambda x: F.interpolate(x.float(), scale_factor=1.5).to(torch.int8), (CODES,)),
    "nearest_1d": (lambda x: F.interpolate(x, scale_factor=3), (ROW[None],)),
    "nearest_3d": (lambda x: F.interpolate(x, scale_factor=2), (CUBE,)),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), (X,)),
    "bilinear_corners": (lambda x: F.interpolate(x, (11, 3), mode="bilinear", align_corners=True), (X,)),
    "bilinear_factor": (lambda x: F.interpolate(x, scale_factor=(1.7, 0.6), mode="bilinear"), (X,)),
    "bicubic": (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), (X,)),
    "antialias_bicubic": (lambda x: F.interpolate(x, (4, 3), mode="bicubic", antialias=True), (X,)),
    "antialias": (lambda x: F.interpolate(x, (4, 3), mode="bilinear", antialias=True), (X,)),
    "area": (lambda x: F.interpolate(x, (4, 3), mode="area"), (X,)),
    "linear_1d": (lambda x: F.interpolate(x, 9, mode="linear"), (ROW[None],)),
    "trilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"), (CUBE,)),
    **{f"grid_{m}_{p}": (lambda x, y, m=m, p=p: F.grid_sample(x, y, m, p, align_corners=False),
       (X, rand(2, 5, 5, 2, seed=3) * 0.7)) for m in ("bilinear", "nearest") for p in ("zeros", "border",
       "reflection")},
    "grid_corners": (lambda x, y: F.grid_sample(x, y, align_corners=True), (X, rand(2, 5, 5, 2) * 0.7)),
}  # fmt: skip
W, B = rand(6, 4, 3, 3, seed=5), rand(6, seed=6)
NORMS: dict[str, Case] = {
    "layer_norm": (nn.LayerNorm(6), (X,)),
    "layer_norm_two": (nn.LayerNorm((6, 6), elementwise_affine=False), (X,)),
    "group_norm": (nn.GroupNorm(2, 4), (X,)),
    "instance_norm": (nn.InstanceNorm2d(4, affine=True), (X,)),
    "batch_norm": (nn.BatchNorm2d(4), (X,)),
    "batch_norm_1d": (nn.BatchNorm1d(5), (ROW,)),
    "rms_norm": (lambda x: F.rms_norm(x, (6,), torch.arange(6.0), 1e-6), (X,)),
    "local_response": (lambda x: F.local_response_norm(x, 3), (X,)),
}
PRODUCTS: dict[str, Case] = {
    "conv2d": (lambda x: F.conv2d(x, W, B, 2, 1), (X,)),
    "conv2d_groups": (lambda x: F.conv2d(x, W[:, :2], B, padding=1, dilation=2, groups=2), (X,)),
    "conv1d": (lambda x: F.conv1d(x, rand(3, 3, 2)), (ROW[None],)),
    "conv3d": (lambda x: F.conv3d(x, rand(3, 3, 2, 2, 2), padding=1), (CUBE,)),
    "conv_f64": (lambda x: F.conv2d(x, W.double()), (F64,)),
    "conv_unbatched": (lambda x: F.conv2d(x[0], W, B), (X,)),
    "conv_transpose": (lambda x: F.conv_transpose2d(x, W.transpose(0, 1), B, 2, 1, 1), (X,)),
    "conv_transpose_groups": (lambda x: F.conv_transpose2d(x, W[:4], rand(8), 2, groups=2, dilation=2), (X,)),
    "conv_traced_weight": (lambda x, w: F.conv2d(x, w), (X, W)),
    "linear": (lambda x: F.linear(x, rand(7, 6), rand(7)), (X,)),
    "linear_2d": (lambda x: F.linear(x, rand(7, 5), rand(7)), (ROW,)),
    "mm": (lambda x: x @ x.t(), (ROW,)),
    "matmul": (lambda x: x @ x.transpose(-1, -2), (X,)),
    "mv": (lambda x: x @ torch.arange(5.0), (ROW,)),
    "dot": (lambda x: x[0] @ x[1], (ROW,)),
    "addmm": (lambda x: torch.addmm(torch.ones(3, 3), x, x.t(), beta=0.5, alpha=2), (ROW,)),
    "baddbmm": (lambda x: torch.baddbmm(torch.ones(1), x[0], x[1]), (X,)),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x.flip(1)), (X,)),
    "attention_causal": (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), (X,)),
    "attention_mask": (lambda x: F.scaled_dot_product_attention(x, x, x, torch.ones(6, 6).tril() > 0), (X,)),
    "multihead": (lambda x: nn_attention(x, x, x)[0], (ROW[None].repeat(1, 1, 4)[..., :8],)),
    "lstm": (nn.LSTM(5, 3), (rand(4, 2, 5),)),
    "lstm_both_ways": (nn.LSTM(5, 3, 2, bidirectional=True), (rand(4, 2, 5),)),
    "gru": (nn.GRU(5, 3), (rand(4, 2, 5),)),
    "int_mm": (lambda x: torch._int_mm(x, ints(32, 16)), (ints(24, 32),)),
    "int_matmul": (lambda x, y: x.int() @ y.int(), (ints(3, 4, 5), ints(3, 5, 6))),
    "carried_codes": (lambda x: F.conv2d(x.float(), ints(6, 4, 3, 3).float(), torch.arange(6.0) - 3), (CODES,)),
    "carried_depthwise": (lambda x: F.conv2d(x.float(), ints(4, 1, 3, 3).float(), groups=4), (CODES,)),
    "carried_wide": (lambda x: F.conv2d(x.double(), ints(6, 4, 3, 3).double(), stride=2, padding=1), (CODES16,)),
    "carried_transposed": (lambda x: F.conv_transpose2d(x.double(), ints(4, 6, 3, 2).double(), stride=(2, 3),
                           padding=1, output_padding=1), (CODES,)),
    "carried_transposed_groups": (lambda x: F.conv_transpose2d(x.double(), ints(4, 3, 3, 3).double(), stride=2,
                                  padding=3, groups=2), (CODES16,)),
    "carried_reflect": (lambda x: F.conv1d(F.pad(x.double(), (1, 1), mode="reflect"), ints(2, 5, 3).double()),
                        (ints(3, 5, 9),)),
    "carried_linear": (lambda x: F.linear(x.double(), ints(7, 6).double(), torch.arange(7.0).double()), (CODES16,)),
    "carried_matmul": (lambda x: x.double() @ x.double().transpose(-1, -2), (CODES,)),
    "carried_matmul_wide": (lambda x: x.double() @ x.double().transpose(-1, -2), (CODES16,)),
}  # fmt: skip
torch.manual_seed(0)
nn_attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
ALL = {
    f"{kind}-{name}": case
    for kind, cases in {
        "elementwise": ELEMENTWISE, "activation": ACTIVATIONS, "shape": SHAPES, "index": INDICES,
        "reduction": REDUCTIONS, "pool": POOLS, "resize": RESIZES, "norm": NORMS, "product": PRODUCTS,
        "composed": COMPOSED,
    }.items()
    for name, case in cases.items()
}  # fmt: skip


@pytest.mark.parametrize("name", list(ALL))
def test_operator_gives_in_onnx_runtime_what_it_gives_in_torch(name: str) -> None:
    function, inputs = ALL[name]

    assert_same_in_onnx(function, *inputs)


def test_every_emitter_is_held_against_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    used = {"_convolution.default"}  # by traced modules only, see test_compile.py

    def noted(name: str) -> Any:
        used.add(name)
        return emitter_of(name)

    monkeypatch.setattr(recorder, "emitter_of", noted)
    for function, inputs in ALL.values():
        model = function if isinstance(function, nn.Module) else Function(function)
        record_model(model.eval(), tuple(t.clone() for t in inputs))

    assert set(emitter_names()) - used == set()


@pytest.mark.parametrize("name", [name for name in ALL if "carried" in name or "int_mm" in name])
def test_product_of_codes_is_an_integer_operator(name: str) -> None:
    exported = assert_same_in_onnx(*[ALL[name][0], *ALL[name][1]])

    kinds = {node.op_type for node in exported.proto.graph.node}
    if name != "product-carried_matmul_wide":  # int16 by int16: exact in float64
        assert kinds & {"ConvInteger", "MatMulInteger"}
        assert not kinds & {"Conv", "MatMul", "ConvTranspose"}
