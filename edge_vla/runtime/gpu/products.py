"""Matrix products of one layer over packed weights: a kernel for a few rows, another for a prefill's many.

Which kernels is decided here, once, by the weight's format and by what the activations are rounded to; the names go
into every result. Knows formats; knows nothing of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.errors import BackendError
from edge_vla.quant import PackedWeight, Scheme
from edge_vla.runtime.gpu.kernels.weights import Int4Weight, Int8Weight, repack_int4, repack_int8, summed
from edge_vla.runtime.gpu.ways import Ways

AT_ONCE: Final = 8 << 20  # weights repacked at a time: each takes some ten bytes while it is
FEW: Final = 8  # rows that the kernels for a few rows take


@dataclass(frozen=True)
class Product:
    """`few(x (M <= 8, K))` gives (M, N), or partial sums (S, M, N) in float32; `many` gives (M, N).

    With `rounded`, `many` takes rows rounded to int8.
    """

    few: Callable[[Tensor], Tensor]
    many: Callable[[Any], Tensor]
    rounded: bool
    names: tuple[str, str]
    bytes: int


def product(parts: Sequence[PackedWeight], ways: Ways) -> Product:
    """One product whose outputs are those of `parts` in order. Parts are on the device, in the layout of the disk."""
    rounded = ways.activations == "8" and all(part.scheme is not Scheme.BF16 for part in parts)
    made = [_one(part, ways, rounded) for part in parts]
    if len(made) == 1:
        return made[0]
    few, many = (tuple(dict.fromkeys(one.names[i] for one in made)) for i in range(2))
    return Product(
        lambda x: torch.cat([summed(one.few(x), ways.dtype) for one in made], dim=-1),
        lambda x: torch.cat([one.many(x) for one in made], dim=-1),
        rounded,
        ("+".join(few), "+".join(many)),
        sum(one.bytes for one in made),
    )


def _one(packed: PackedWeight, ways: Ways, rounded: bool) -> Product:
    if packed.scheme is Scheme.BF16:
        return dense(packed.codes.to(ways.dtype))
    if ways.dtype not in (torch.bfloat16, torch.float16):
        scheme = packed.scheme.value
        raise BackendError(f"the GPU engine multiplies {scheme} weights in 16 bits, not {ways.dtype}: --dtype bf16")
    return _int4(repack(packed), ways, rounded) if packed.scheme is Scheme.INT4 else _int8(packed, ways, rounded)


def dense(weight: Tensor) -> Product:
    """A 16-bit weight: torch's own product."""

    def times(x: Tensor) -> Tensor:
        return F.linear(x, weight)

    return Product(times, times, False, ("torch", "torch"), weight.nbytes)


def _int4(weight: Int4Weight, ways: Ways, rounded: bool) -> Product:
    use = ways.kernels
    return Product(
        lambda x: use.w4a16_few(x, weight),
        (lambda x: use.w4a8_gemm(x, weight, ways.dtype)) if rounded else (lambda x: use.w4a16_gemm(x, weight)),
        rounded,
        ("w4a16_few", "w4a8_gemm" if rounded else "w4a16_gemm"),
        weight.bytes,
    )


def _int8(packed: PackedWeight, ways: Ways, rounded: bool) -> Product:
    weight = repack_int8(packed)
    return Product(
        lambda x: ways.kernels.w8a16_few(x, weight),
        many_int8(weight, ways, rounded),
        rounded,
        ("w8a16_few", "w8a8_gemm" if rounded else "w8a16_gemm"),
        weight.bytes,
    )


def many_int8(weight: Int8Weight, ways: Ways, rounded: bool) -> Callable[[Any], Tensor]:
    """Many rows in the working type, or with `rounded` in int8, times an int8 weight."""
    if rounded:
        return lambda x: ways.kernels.w8a8_gemm(x, weight, ways.dtype)
    return lambda x: ways.kernels.w8a16_gemm(x, weight)


def repack(packed: PackedWeight) -> Int4Weight:
    """`repack_int4` some rows at a time, which bounds what it takes beside the weight."""
    outer, inner = packed.shape
    assert packed.scales is not None, "int4 has scales"
    whole, step = None, max(1, AT_ONCE // inner)
    for first in range(0, outer, step):
        rows = slice(first, min(first + step, outer))
        shape = (rows.stop - first, inner)
        part = repack_int4(PackedWeight(packed.scheme, shape, packed.group, packed.codes[rows], packed.scales[rows]))
        if shape[0] == outer:
            return part
        if whole is None:
            wide = (part.codes.shape[0], outer, part.codes.shape[2])
            scales_like = part.scales.new_empty(part.scales.shape[0], outer)
            whole = Int4Weight(part.codes.new_empty(wide), scales_like, packed.shape, part.group)
        whole.codes[:, rows], whole.scales[:, rows] = part.codes, part.scales
    assert whole is not None, "a weight has rows"
    return whole
