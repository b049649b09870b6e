"""A small Llama: RMS norms, rotary positions, grouped queries, SwiGLU, and one matrix for words in and words out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Shape:
    """Row lengths are multiples of 32, the block of Q8_0; ``context`` is in tokens."""

    vocabulary: int = 4096
    width: int = 256
    feed_forward: int = 704
    layers: int = 4
    heads: int = 8
    kv_heads: int = 4
    context: int = 1024
    norm_eps: float = 1e-5
    rope_base: float = 10_000.0

    @property
    def head_width(self) -> int:
        return self.width // self.heads


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        kv_width = shape.kv_heads * shape.head_width
        self.attn_norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.attn_q = nn.Linear(shape.width, shape.width, bias=False)
        self.attn_k = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_v = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_output = nn.Linear(shape.width, shape.width, bias=False)
        self.ffn_norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.ffn_gate = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.ffn_up = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.ffn_down = nn.Linear(shape.feed_forward, shape.width, bias=False)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        rows, length, width = x.shape
        head_width = self.shape.head_width
        h = self.attn_norm(x)
        q = rotate(self.attn_q(h).view(rows, length, -1, head_width).transpose(1, 2), turns)
        k = rotate(self.attn_k(h).view(rows, length, -1, head_width).transpose(1, 2), turns)
        v = self.attn_v(h).view(rows, length, -1, head_width).transpose(1, 2)
        shared = self.shape.heads // self.shape.kv_heads
        k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_output(mixed.transpose(1, 2).reshape(rows, length, width))
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


class TinyLlama(nn.Module):
    """Parameters carry llama.cpp's tensor names, so that the export only has to add ``blk.N.``."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocabulary, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                deep = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(weight, std=0.02 / (2 * shape.layers) ** 0.5 if deep else 0.02)

    def forward(self, tokens: Tensor, wanted: Tensor) -> Tensor:
        """The logits of what follows each of ``tokens`` where ``wanted`` is true, one row each."""
        x = self.token_embd(tokens)
        turns = rotations(self.shape, tokens.shape[1])
        for block in self.blk:
            x = block(x, turns)
        return F.linear(self.output_norm(x[wanted]), self.token_embd.weight)


def rotations(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    speeds = shape.rope_base ** (-torch.arange(0, shape.head_width, 2) / shape.head_width)
    angles = torch.arange(length).unsqueeze(1) * speeds
    return angles.cos(), angles.sin()


def rotate(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Neighbouring numbers are the pairs that turn together: the order that llama.cpp expects of a Llama."""
    cos, sin = (turn.to(x.dtype) for turn in turns)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
