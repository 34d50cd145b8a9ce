"""Activation functions as tables."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from profiler.quant.ops.lookup import register_table

SIGMOID = register_table("sigmoid", torch.sigmoid, "special_expit", modules=(nn.Sigmoid,))
LOG_SIGMOID = register_table("log_sigmoid", F.logsigmoid, modules=(nn.LogSigmoid,), note="F.logsigmoid")
HARDSIGMOID = register_table("hardsigmoid", F.hardsigmoid, modules=(nn.Hardsigmoid,))
TANH = register_table("tanh", torch.tanh, modules=(nn.Tanh,))
SILU = register_table("silu", F.silu, modules=(nn.SiLU,), note="swish")
HARDSWISH = register_table("hardswish", F.hardswish, modules=(nn.Hardswish,))
MISH = register_table("mish", F.mish, modules=(nn.Mish,))
GELU = register_table(
    "gelu", F.gelu, modules=(nn.GELU,), constants=("approximate",), note="exact and tanh approximation"
)
LEAKY_RELU = register_table("leaky_relu", F.leaky_relu, modules=(nn.LeakyReLU,), constants=("negative_slope",))
ELU = register_table("elu", F.elu, modules=(nn.ELU,), constants=("alpha",))
SELU = register_table("selu", F.selu, modules=(nn.SELU,))
CELU = register_table("celu", F.celu, modules=(nn.CELU,), constants=("alpha",))
SOFTPLUS = register_table("softplus", F.softplus, modules=(nn.Softplus,), constants=("beta", "threshold"))
SOFTSIGN = register_table("softsign", F.softsign, modules=(nn.Softsign,))
TANHSHRINK = register_table("tanhshrink", F.tanhshrink, modules=(nn.Tanhshrink,))
HARDSHRINK = register_table("hardshrink", F.hardshrink, modules=(nn.Hardshrink,), constants=("lambd",))
SOFTSHRINK = register_table("softshrink", F.softshrink, modules=(nn.Softshrink,), constants=("lambd",))
THRESHOLD = register_table("threshold", F.threshold, modules=(nn.Threshold,), constants=("threshold", "value"))
HARDTANH = register_table("hardtanh", F.hardtanh, modules=(nn.Hardtanh,), constants=("min_val", "max_val"))
