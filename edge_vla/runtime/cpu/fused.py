"""The decoder in torch's operators: fused products, tables and masks made once, attention over a static cache.

Arithmetic follows `edge_vla.model.decoder` step by step: in 16 bits with the same products, hidden states are equal.
Knows shapes and kernels. Knows nothing of files, tokens or robots, and runs one robot's rows at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_vla.model import Cache
from edge_vla.model.decoder import RMSNorm, rotary_tables
from edge_vla.runtime.kernels.gemm import DynamicInt8
from edge_vla.runtime.kernels.reference import BATCH_INVARIANT_ROWS
from edge_vla.spec import DecoderSpec


@dataclass(slots=True)
class Tables:
    """Rotary tables and mask for all positions up to a length, in the working type."""

    cos: Tensor  # (length, 1, head width)
    sin: Tensor  # the same with its first half negated, so that rotating is a roll
    mask: Tensor  # (length, length): 0 where a row sees a slot, -inf where it does not

    @staticmethod
    def make(spec: DecoderSpec, length: int, dtype: torch.dtype, device: torch.device) -> Tables:
        cos, sin = rotary_tables(spec, torch.arange(length, device=device)[None], dtype)
        half = spec.head_width // 2
        signed = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        mask = torch.full((length, length), float("-inf"), dtype=dtype, device=device).triu(1)
        return Tables(cos[0, 0, :, None], signed[0, 0, :, None], mask)


@dataclass(slots=True)
class Pass:
    """What all layers share in one pass. `start` is the first row's position."""

    start: int
    end: int
    cos: Tensor  # (T, 1, head width)
    sin: Tensor
    mask: Tensor | None  # (at least BATCH_INVARIANT_ROWS, cache length); None where `causal`
    causal: bool
    keys: Sequence[Tensor]  # of each layer (1, kv heads, cache length, head width)
    values: Sequence[Tensor]
    wanted: slice | None = None  # in the last layer: the rows whose output is used


class Products(nn.Module):
    """Products of one input whose formats differ, concatenated: (T, K) -> (T, sum of N)."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], dim=-1)


class FusedLayer(nn.Module):
    """One decoder layer: (T, width) -> (T, width); writes its keys and values into the cache."""

    def __init__(
        self, spec: DecoderSpec, index: int, products: dict[str, nn.Module], norms: tuple[RMSNorm, RMSNorm]
    ) -> None:
        super().__init__()
        self.spec, self.index = spec, index
        self.input_layernorm, self.post_attention_layernorm = norms
        self.qkv, self.o_proj = products["qkv"], products["o_proj"]
        self.gate_up, self.down_proj = products["gate_up"], products["down_proj"]

    def forward(self, x: Tensor, step: Pass) -> Tensor:
        mixed = self._attend(self.qkv(_norm(self.input_layernorm, x)), step)
        x = x if step.wanted is None else x[step.wanted]
        x = self.o_proj(mixed).add_(x)
        gate_up = self.gate_up(_norm(self.post_attention_layernorm, x))
        gate, up = gate_up[:, : self.spec.mlp_width], gate_up[:, self.spec.mlp_width :]
        out: Tensor = self.down_proj(F.silu(gate).mul_(up)).add_(x)
        return out

    def _attend(self, qkv: Tensor, step: Pass) -> Tensor:
        spec, rows = self.spec, qkv.shape[0]
        turned = qkv[:, : spec.width + spec.kv_width].view(rows, -1, spec.head_width)
        half = turned.roll(spec.head_width // 2, -1).mul_(step.sin)
        turned = torch.mul(turned, step.cos).add_(half).transpose(0, 1)  # (heads + kv heads, T, head width)
        keys, values = step.keys[self.index], step.values[self.index]
        keys[0, :, step.start : step.end] = turned[spec.heads :]
        value = qkv[:, spec.width + spec.kv_width :].view(rows, spec.kv_heads, spec.head_width)
        values[0, :, step.start : step.end] = value.transpose(0, 1)
        query = turned[None, : spec.heads] if step.wanted is None else turned[None, : spec.heads, step.wanted]
        asked = query.shape[2]
        if asked < BATCH_INVARIANT_ROWS:
            query = F.pad(query, (0, 0, 0, BATCH_INVARIANT_ROWS - asked))
        mixed = F.scaled_dot_product_attention(
            query,
            keys,
            values,
            attn_mask=step.mask,
            is_causal=step.causal,
            enable_gqa=spec.heads != spec.kv_heads,
        )
        return mixed[0, :, :asked].transpose(0, 1).flatten(1)


class FusedDecoder(nn.Module):
    """Embeddings (1, T, width) of rows from position `start` -> normed hidden states (1, T, width).

    A row sees the cache slots up to its own position. The cache may be longer than the last row: the pass then
    computes over all of it. On a CPU up to BATCH_INVARIANT_ROWS rows are batch-invariant: over a cache of one length,
    a row's bits depend neither on its neighbours nor on their number nor on its place among them.
    """

    def __init__(self, spec: DecoderSpec, layers: Sequence[FusedLayer], norm: RMSNorm) -> None:
        super().__init__()
        self.spec = spec
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self._tables: Tables | None = None

    @property
    def batch_invariant(self) -> bool:
        return self.norm.weight.device.type == "cpu"

    @property
    def prefill_matches_step(self) -> bool:
        """Whether a prefill computes a row as a decode step does, up to the order of sums."""
        return not any(isinstance(module, DynamicInt8) for module in self.modules())

    def cache(self, length: int) -> Cache:
        return Cache.allocate(self.spec, 1, length, self.norm.weight.dtype, self.norm.weight.device)

    def rows(self, x: Tensor, start: int, cache: Cache, wanted: slice | None = None) -> Tensor:
        """Hidden states of the `wanted` rows, or of all; the last layer computes no others."""
        flat = x[0]
        end, length = start + flat.shape[0], cache.length
        tables = self._reach(length + BATCH_INVARIANT_ROWS, x.dtype, x.device)
        causal = start == 0 and end == length >= BATCH_INVARIANT_ROWS
        step = Pass(
            start=start,
            end=end,
            cos=tables.cos[start:end],
            sin=tables.sin[start:end],
            mask=None if causal else tables.mask[start : max(end, start + BATCH_INVARIANT_ROWS), :length],
            causal=causal,
            keys=cache.keys.unbind(0),
            values=cache.values.unbind(0),
        )
        for layer in self.layers:
            if wanted is not None and layer is self.layers[-1]:
                chosen = range(start, end)[wanted]
                mask = tables.mask[chosen.start : max(chosen.stop, chosen.start + BATCH_INVARIANT_ROWS), :length]
                step = replace(step, wanted=wanted, mask=mask, causal=False)
            flat = layer(flat, step)
        return _norm(self.norm, flat)[None]

    def _reach(self, length: int, dtype: torch.dtype, device: torch.device) -> Tables:
        tables = self._tables
        if tables is None or tables.mask.shape[0] < length or tables.cos.dtype != dtype:
            tables = self._tables = Tables.make(self.spec, length, dtype, device)
        return tables


def _norm(norm: RMSNorm, x: Tensor) -> Tensor:
    """`norm(x)`, bit for bit, with fewer temporary tensors."""
    exact = x.float()
    scale = exact.square().mean(-1, keepdim=True).add_(norm.eps).rsqrt_()
    return torch.mul(exact, scale).to(x.dtype).mul_(norm.weight)
