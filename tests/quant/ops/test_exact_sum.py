from __future__ import annotations

import torch

from profiler.quant.ops.exact_sum import exact_sum


def test_exact_sum_small_and_large_bounds_give_the_exact_sum() -> None:
    x = torch.randint(-(2**30), 2**30, (7, 900), generator=torch.Generator().manual_seed(0)).double()
    expected = x.to(torch.int64).sum(1, keepdim=True)
    for largest in (2.0**30, 2.0**52):  # the second makes float64 unsure, so int64 adds
        total = exact_sum(x, (1,), largest)
        assert total.dtype == torch.float64
        assert torch.equal(total.to(torch.int64), expected)


def test_exact_sum_beyond_float64_rounds_once() -> None:
    x = torch.tensor([2.0**53, 1.0, 1.0, 1.0, 1.0])  # float64 alone would lose each 1
    assert float(exact_sum(x.double(), (0,), 2.0**53)) == 2.0**53 + 4


def test_exact_sum_of_a_number_is_the_number() -> None:
    assert float(exact_sum(torch.tensor(3.0, dtype=torch.float64), (0,), 3)) == 3
