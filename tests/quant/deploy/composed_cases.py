"""Operators that the exporter puts together from others, and inputs to hold them against torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.quant.deploy.functions import ints, rand

X, ROW, CODES = rand(2, 4, 6, 6), rand(3, 5), ints(2, 4, 6, 6)
CODES16 = ints(2, 4, 6, 6, low=-30000, high=30000, dtype=torch.int16)
BAGS = ints(4, 5, low=0, high=3, dtype=torch.int64)
BOUNDARIES = torch.tensor([-1.0, 0.0, 0.5])
COMPOSED: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "bilinear": (nn.Bilinear(6, 5, 3), (X[:, :, 0], rand(2, 4, 5))),
    "bilinear_row": (nn.Bilinear(5, 5, 3, bias=False), (ROW[0], ROW[1])),
    "trilinear": (lambda x, y: torch._trilinear(x, y, x, [2], [1], [1], [1]), (ROW, ROW.flip(0))),
    **{f"{n}_{d}": (lambda x, n=n, d=d: getattr(torch, n)(x, d), (X,)) for n in ("cumprod", "logcumsumexp")
       for d in (1, -1)},
    "cumprod_int": (lambda x: x.cumprod(-1), (ints(3, 5, low=-3, high=4),)),
    **{f"{n}_{t.dtype}": (lambda x, n=n: getattr(torch, n)(x, 1)[0], (t,)) for n in ("cummax", "cummin")
       for t in (X, CODES, CODES16)},
    "cumprod_one": (lambda x: x[:, :1].cumprod(1), (X,)),
    **{n: (getattr(torch, n), (X,)) for n in ("erfc", "signbit")},
    "signbit_int": (torch.signbit, (CODES,)),
    "hypot": (torch.hypot, (X * 1e25, X.flip(1) * 1e25 * (X > 0))),
    "copysign": (torch.copysign, (X, X.flip(1).round())),
    "copysign_number": (lambda x: torch.copysign(x, -0.0), (X,)),
    **{f"median_{k}": (lambda x, k=k: x.median(-1, keepdim=k), (ROW,)) for k in (False, True)},
    "median_even": (lambda x: x.median(1)[0], (X,)),
    "median_codes": (lambda x: x.median(1)[0], (CODES,)),
    "kthvalue": (lambda x: x.kthvalue(2, 0, keepdim=True), (ROW,)),
    "bucketize": (lambda x: torch.bucketize(x.mul(2).round() / 2, BOUNDARIES), (X,)),
    "bucketize_right": (lambda x: torch.bucketize(x.mul(2).round() / 2, BOUNDARIES, right=True, out_int32=True), (X,)),
    "searchsorted": (lambda x: torch.searchsorted(BOUNDARIES, x), (X,)),
    "searchsorted_rows": (lambda x: torch.searchsorted(x.sort(-1)[0], x.flip(0), side="right"), (ROW,)),
    **{f"scatter_{r}": (lambda x, r=r: x.scatter_reduce(1, ints(3, 4, low=0, high=5).long(), x * 2, r), (ROW,))
       for r in ("sum", "prod", "amax", "amin")},
    **{f"embedding_bag_{mode}": (partial(F.embedding_bag, weight=ROW, mode=mode), (BAGS,))
       for mode in ("sum", "mean")},
    "embedding_bag_module": (nn.EmbeddingBag(3, 6), (BAGS,)),
    "embedding_bag_offsets": (partial(F.embedding_bag, weight=ROW, offsets=torch.tensor([0, 3, 3, 5])),
                              (ints(9, low=0, high=3, dtype=torch.int64),)),
    "embedding_bag_last_offset": (
        partial(F.embedding_bag, weight=ROW, offsets=torch.tensor([0, 3, 9]), include_last_offset=True),
        (ints(9, low=0, high=3, dtype=torch.int64),),
    ),
    "scalars": (lambda x: torch.ops.aten.div.Scalar(torch.ops.aten.sub.Scalar(x, 0.5), 3.0), (X,)),
    "isclose": (lambda x, y: torch.isclose(x, y), (X, X + (X > 0))),
}  # fmt: skip
