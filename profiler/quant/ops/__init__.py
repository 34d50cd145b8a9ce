"""The operators: one file per family, one `OpSpec` per operator. Importing this package registers all of them."""

from profiler.quant import stubs
from profiler.quant.ops import (
    add,
    batch_norm,
    cat,
    conv,
    conv3d,
    conv_transpose,
    functional,
    gemm,
    linear,
    pool,
    registry,
    relu,
    shape,
)

__all__ = [
    "add",
    "batch_norm",
    "cat",
    "conv",
    "conv3d",
    "conv_transpose",
    "functional",
    "gemm",
    "linear",
    "pool",
    "registry",
    "relu",
    "shape",
    "stubs",
]
