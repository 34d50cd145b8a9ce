"""A small vision transformer, with its attention written in the three ways that models in the wild use."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from profiler.quant import DeQuantStub, QuantStub
from sample_models import digits

PATCH_SIZE = 8
NUM_TOKENS = (digits.IMAGE_SIZE // PATCH_SIZE) ** 2


class Residual(nn.Module):
    """`x + y` as a module, so that a qconfig can be given to it by name: its output is what a LayerNorm reads."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


class Scores(nn.Module):
    """`q k^T` as a module, so that a qconfig can be given to it by name: its output is what a softmax reads."""

    def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return torch.matmul(q, k.transpose(-2, -1))


class OwnAttention(nn.Module):
    """Self-attention over `[N, L, C]` with one qkv layer; the products and the softmax are the model's own code."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.scores = Scores()
        self.softmax = nn.Softmax(dim=-1)
        self.proj = nn.Linear(dim, dim)

    def heads(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, each `[N, heads, L, C / heads]`."""
        qkv = self.qkv(x).reshape(-1, NUM_TOKENS, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        return qkv[0], qkv[1], qkv[2]

    def merge(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, heads, L, C / heads]` back to `[N, L, C]`, projected."""
        merged: torch.Tensor = self.proj(x.transpose(1, 2).reshape(-1, NUM_TOKENS, self.num_heads * self.head_dim))
        return merged

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.heads(x)
        return self.merge(torch.matmul(self.softmax(self.scores(q * self.head_dim**-0.5, k)), v))


class FunctionAttention(OwnAttention):
    """The same with `F.scaled_dot_product_attention`."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads)
        del self.scores, self.softmax

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.heads(x)
        return self.merge(F.scaled_dot_product_attention(q, k, v))


class ModuleAttention(nn.Module):
    """The same with `nn.MultiheadAttention`."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(dim, num_heads, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.mha(x, x, x, need_weights=False)[0]
        return y


class Block(nn.Module):
    """LayerNorm, attention, residual; LayerNorm, GELU network, residual."""

    def __init__(self, dim: int, attention: nn.Module, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = attention
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))
        self.add1, self.add2 = Residual(), Residual()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.add1(x, self.attn(self.norm1(x)))
        x = self.add2(x, self.mlp(self.norm2(x)))
        return x


class VisionTransformer(nn.Module):
    """Camera-like images `[N, 1, 32, 32]` to logits `[N, 10]`: 8x8 patches, learned positions, mean over the tokens."""

    attentions = (OwnAttention, ModuleAttention, FunctionAttention)

    def __init__(self, dim: int = 64, num_heads: int = 4, mlp_ratio: int = 2) -> None:
        super().__init__()
        self.quant = QuantStub(scale=1 / 128)
        self.position_quant = QuantStub()
        self.patches = nn.Conv2d(1, dim, PATCH_SIZE, PATCH_SIZE)
        self.position = nn.Parameter(0.02 * torch.randn(1, NUM_TOKENS, dim))
        self.add_position = Residual()
        self.blocks = nn.Sequential(*(Block(dim, kind(dim, num_heads), mlp_ratio) for kind in self.attentions))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, digits.NUM_CLASSES)
        self.dequant = DeQuantStub()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(self.quant(x)).flatten(2).transpose(1, 2)
        x = self.add_position(x, self.position_quant(self.position))
        x = self.norm(self.blocks(x))
        logits: torch.Tensor = self.dequant(self.head(x.mean(dim=1)))
        return logits
