"""Packed layers in, fused layers out: which products become one, and which kernel runs each.

Knows names of linear layers and kernels. Knows nothing of files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from edge_vla.model.decoder import RMSNorm
from edge_vla.quant import PackedWeight
from edge_vla.runtime.engine import FusedLayer, Products
from edge_vla.runtime.kernels import AUTO, pick
from edge_vla.spec import PolicySpec

TOGETHER: Final[Mapping[str, tuple[str, ...]]] = {  # products that share their input
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o_proj": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down_proj": ("mlp.down_proj",),
}
TEXT_ROWS: Final = 32  # of a prompt beside the image, about: how many rows the probe takes a prefill to have


class Assembly:
    """Makes layers, and remembers which kernels it chose: scheme -> kernel name -> shapes (N, K)."""

    def __init__(self, spec: PolicySpec, dtype: torch.dtype, device: torch.device, want: str = AUTO) -> None:
        self.spec, self.dtype, self.device, self.want = spec, dtype, device, want
        self.rows = spec.patches + TEXT_ROWS
        self.chosen: dict[str, dict[str, set[tuple[int, int]]]] = defaultdict(lambda: defaultdict(set))

    def layer(self, index: int, linears: Mapping[str, PackedWeight], norms: Mapping[str, Tensor]) -> FusedLayer:
        products = {name: self._product([linears[part] for part in parts]) for name, parts in TOGETHER.items()}
        first, second = self.norm(norms["input_layernorm.weight"]), self.norm(norms["post_attention_layernorm.weight"])
        return FusedLayer(self.spec.decoder, index, products, (first, second))

    def norm(self, weight: Tensor) -> RMSNorm:
        # A copy: the tensor read from a file keeps the whole file mapped.
        norm = RMSNorm(0, self.spec.decoder.norm_eps)
        norm.weight = nn.Parameter(weight.to(self.device, self.dtype, copy=True), requires_grad=False)
        return norm

    def kernels(self) -> dict[str, str]:
        """Kernel by scheme; where shapes differ in theirs, each with its shapes."""
        return {scheme: _words(names) for scheme, names in self.chosen.items()}

    def _product(self, parts: Sequence[PackedWeight]) -> nn.Module:
        whole = fused(parts)
        made: list[nn.Module] = []
        for packed in [whole] if whole is not None else parts:
            kernel = pick(packed, self.dtype, self.device, self.want, self.rows)
            self.chosen[packed.scheme.value][kernel.name].add(packed.shape)
            product = kernel(packed, self.dtype, self.device)
            assert isinstance(product, nn.Module), "a kernel is a module"
            made.append(product)
        return made[0] if len(made) == 1 else Products(made)


def fused(parts: Sequence[PackedWeight]) -> PackedWeight | None:
    """One weight whose outputs are those of `parts` in order; None if their formats differ."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if len({(part.scheme, part.group, part.shape[1], part.codes.dtype) for part in parts}) > 1:
        return None
    scales = [part.scales for part in parts if part.scales is not None]
    zeros = [part.zeros for part in parts if part.zeros is not None]
    outer = sum(part.shape[0] for part in parts)
    return PackedWeight(
        scheme=first.scheme,
        shape=(outer, first.shape[1]),
        group=first.group,
        codes=torch.cat([part.codes for part in parts]),
        scales=torch.cat(scales) if scales else None,
        zeros=torch.cat(zeros) if zeros else None,
    )


def _words(names: Mapping[str, set[tuple[int, int]]]) -> str:
    if len(names) == 1:
        return next(iter(names))
    listed = (
        f"{name} ({', '.join(f'{outer}x{inner}' for outer, inner in sorted(shapes))})" for name, shapes in names.items()
    )
    return "; ".join(sorted(listed))
