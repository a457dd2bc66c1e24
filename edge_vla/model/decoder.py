"""Llama over a static cache, in plain torch.

Arithmetic follows transformers 4.40.1 step by step (norms in float32, rotary tables rounded to the working
type, logits from the working type), so that bf16 here is the bf16 that OpenVLA's users run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_vla.spec import DecoderSpec


@dataclass(frozen=True, slots=True)
class Cache:
    """Keys and values of every layer, allocated once: each (layers, B, kv heads, length, head width)."""

    keys: Tensor
    values: Tensor

    @staticmethod
    def allocate(spec: DecoderSpec, batch: int, length: int, dtype: torch.dtype, device: torch.device) -> Cache:
        shape = (spec.layers, batch, spec.kv_heads, length, spec.head_width)
        return Cache(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))

    @property
    def length(self) -> int:
        return self.keys.shape[3]

    def first(self, length: int) -> Cache:
        """A view of the first `length` slots."""
        return Cache(self.keys[:, :, :, :length], self.values[:, :, :, :length])


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        real = x.float()
        real = real * torch.rsqrt(real.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * real.to(x.dtype)


def rotary_tables(spec: DecoderSpec, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """positions (B, T) -> cos, sin, each (B, 1, T, head width), computed in float32 and rounded to `dtype`."""
    exponents = torch.arange(0, spec.head_width, 2, dtype=torch.int64, device=positions.device).float()
    frequencies = 1.0 / (spec.rope_theta ** (exponents / spec.head_width))
    angles = positions[..., None].float() * frequencies  # (B, T, head width / 2)
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


@dataclass(frozen=True, slots=True)
class Step:
    """What every layer shares in one pass: rows' positions, rotary tables and which cache slots each row sees."""

    positions: Tensor  # (B, T)
    cos: Tensor  # (B, 1, T, head width)
    sin: Tensor
    visible: Tensor  # (B, 1, T, cache length), bool


class Attention(nn.Module):
    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.q_proj: nn.Module = nn.Linear(spec.width, spec.width, bias=False)
        self.k_proj: nn.Module = nn.Linear(spec.width, spec.kv_width, bias=False)
        self.v_proj: nn.Module = nn.Linear(spec.width, spec.kv_width, bias=False)
        self.o_proj: nn.Module = nn.Linear(spec.width, spec.width, bias=False)

    def forward(self, x: Tensor, step: Step, keys: Tensor, values: Tensor) -> Tensor:
        batch, rows, _ = x.shape
        spec = self.spec
        query = self.q_proj(x).view(batch, rows, spec.heads, spec.head_width).transpose(1, 2)
        key = self.k_proj(x).view(batch, rows, spec.kv_heads, spec.head_width).transpose(1, 2)
        value = self.v_proj(x).view(batch, rows, spec.kv_heads, spec.head_width)
        query, key = rotate(query, step.cos, step.sin), rotate(key, step.cos, step.sin)
        batch_index = torch.arange(batch, device=x.device)[:, None]
        keys[batch_index, :, step.positions] = key.transpose(1, 2)
        values[batch_index, :, step.positions] = value
        grouped = spec.heads != spec.kv_heads
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=step.visible, enable_gqa=grouped)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, rows, spec.width))
        return out


class MLP(nn.Module):
    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.gate_proj: nn.Module = nn.Linear(spec.width, spec.mlp_width, bias=False)
        self.up_proj: nn.Module = nn.Linear(spec.width, spec.mlp_width, bias=False)
        self.down_proj: nn.Module = nn.Linear(spec.mlp_width, spec.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class DecoderLayer(nn.Module):
    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(spec.width, spec.norm_eps)
        self.self_attn = Attention(spec)
        self.post_attention_layernorm = RMSNorm(spec.width, spec.norm_eps)
        self.mlp = MLP(spec)

    def forward(self, x: Tensor, step: Step, keys: Tensor, values: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), step, keys, values)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Decoder(nn.Module):
    """embeddings (B, T, width) at given positions -> normed hidden states (B, T, width); fills the cache.

    Padding on the right is harmless: a row sees only cache slots up to its own position, and later steps overwrite the
    slots of the padding.
    """

    batch_invariant = False
    prefill_matches_step = True  # but for the batch

    def __init__(self, spec: DecoderSpec, *, embeddings: bool = True) -> None:
        super().__init__()
        self.spec = spec
        if embeddings:
            self.embed_tokens = nn.Embedding(spec.vocab_rows, spec.width)
        self.layers = nn.ModuleList(DecoderLayer(spec) for _ in range(spec.layers))
        self.norm = RMSNorm(spec.width, spec.norm_eps)

    def cache(self, length: int) -> Cache:
        """For one robot, as rows of this decoder's own type."""
        return Cache.allocate(self.spec, 1, length, self.norm.weight.dtype, self.norm.weight.device)

    def step(self, positions: Tensor, length: int, dtype: torch.dtype) -> Step:
        cos, sin = rotary_tables(self.spec, positions, dtype)
        slots = torch.arange(length, device=positions.device)
        return Step(positions, cos, sin, slots <= positions[:, None, :, None])

    def rows(self, x: Tensor, start: int, cache: Cache, wanted: slice = slice(None)) -> Tensor:
        """One robot's rows (1, T, width) from position `start` on -> hidden states of the `wanted` ones."""
        out: Tensor = self(x, torch.arange(start, start + x.shape[1], device=x.device)[None], cache)
        return out[:, wanted]

    def forward(self, x: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        step = self.step(positions, cache.length, x.dtype)
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            x = layer(x, step, keys, values)
        out: Tensor = self.norm(x)
        return out
