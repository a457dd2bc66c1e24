"""Matrix products of one layer over packed weights: a kernel for a few rows, another for a prefill's many.

Which kernels is decided here, once, by the weight's format and by what the activations are rounded to; the names go
into every result. Knows formats; knows nothing of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.errors import BackendError
from edge_vla.quant import PackedWeight, Scheme
from edge_vla.runtime.gpu.config import GpuConfig
from edge_vla.runtime.gpu.kernels.weights import Int4Weight, Int8Rows, Int8Weight, repack_int4, repack_int8, summed

AT_ONCE: Final = 8 << 20  # weights repacked at a time: each takes some ten bytes while it is


Reads = Literal["16 bits", "int8", "int8 for int4"]
PLAIN: Final[Reads] = "16 bits"


@dataclass(frozen=True)
class Product:
    """`gemv(x (M <= 8, K))` gives (M, N), or partial sums (S, M, N) in float32; gemm gives (M, N).

    `gemv` reads rows of the working type, gemm what `reads` says. `rounds`: gemm rounds rows that `gemv` does not.
    """

    gemv: Callable[[Tensor], Tensor]
    gemm: Callable[[Any], Tensor]
    reads: Reads
    names: tuple[str, str]
    bytes: int
    rounds: bool = False


def product(parts: Sequence[PackedWeight], config: GpuConfig) -> Product:
    """One product whose outputs are those of `parts` in order. Parts are on the device, in the layout of the disk."""
    if config.activations == "8" and len({part.scheme for part in parts}) > 1:
        config = replace(config, activations="16")  # they would read rows in different orders
    made = [_one(part, config) for part in parts]
    if len(made) == 1:
        return made[0]
    gemv, many = (tuple(dict.fromkeys(one.names[i] for one in made)) for i in range(2))
    return Product(
        lambda x: torch.cat([summed(one.gemv(x), config.dtype) for one in made], dim=-1),
        lambda x: torch.cat([one.gemm(x) for one in made], dim=-1),
        made[0].reads,
        ("+".join(gemv), "+".join(many)),
        sum(one.bytes for one in made),
        any(one.rounds for one in made),
    )


def _one(packed: PackedWeight, config: GpuConfig) -> Product:
    make = {Scheme.BF16: _dense, Scheme.INT8: _int8, Scheme.W8A8: _w8a8, Scheme.INT4: _int4}.get(packed.scheme)
    if make is None:
        raise BackendError(
            f"the GPU engine has no kernel for {packed.scheme.value} weights: export with int4 or int8, or run with "
            "--kernel reference (slow)"
        )
    return make(packed, config)


def _dense(packed: PackedWeight, config: GpuConfig) -> Product:
    """A 16-bit weight: torch's own product."""
    weight = packed.codes.to(config.dtype)

    def times(x: Tensor) -> Tensor:
        return F.linear(x, weight)

    return Product(times, times, PLAIN, ("torch", "torch"), weight.nbytes)


def _int4(packed: PackedWeight, config: GpuConfig) -> Product:
    weight, use = repack(packed), config.kernels

    def gemv(x: Tensor) -> Tensor:
        return use.w4a16_gemv(x, weight)

    if config.activations == "8":
        names = ("w4a16_gemv", "w4a8_gemm")
        return Product(
            gemv, lambda x: use.w4a8_gemm(x, weight, config.dtype), "int8 for int4", names, weight.bytes, True
        )
    return Product(gemv, lambda x: use.w4a16_gemm(x, weight), PLAIN, ("w4a16_gemv", "w4a16_gemm"), weight.bytes)


def _int8(packed: PackedWeight, config: GpuConfig) -> Product:
    weight, rounded = repack_int8(packed), config.activations == "8"
    return Product(
        lambda x: config.kernels.w8a16_gemv(x, weight),
        int8_gemm(weight, config),
        "int8" if rounded else PLAIN,
        ("w8a16_gemv", "w8a8_gemm" if rounded else "w8a16_gemm"),
        weight.bytes,
        rounded,
    )


def _w8a8(packed: PackedWeight, config: GpuConfig) -> Product:
    """Inputs are int8 by the format's own definition, few rows or many."""
    weight, use = repack_int8(replace(packed, scheme=Scheme.INT8)), config.kernels

    def gemm(rows: Int8Rows) -> Tensor:
        return use.w8a8_gemm(rows, weight, config.dtype)

    return Product(lambda x: gemm(use.quantise(x)), gemm, "int8", ("w8a8_gemm", "w8a8_gemm"), weight.bytes)


def int8_gemm(weight: Int8Weight, config: GpuConfig) -> Callable[[Any], Tensor]:
    """Many rows, rounded to int8 if activations are, times an int8 weight."""
    if config.activations == "8":
        return lambda x: config.kernels.w8a8_gemm(x, weight, config.dtype)
    return lambda x: config.kernels.w8a16_gemm(x, weight)


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
