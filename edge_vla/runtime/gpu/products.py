"""Matrix products of one layer with packed weights: a gemv kernel for up to eight rows, a gemm kernel for more.

Which kernels is decided here, once, by the weight's format and the bits of the activations; the names go into every
result. Knows formats; knows nothing of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.errors import BackendError
from edge_vla.quant import PackedWeight, Scheme
from edge_vla.runtime.gpu.config import GpuConfig
from edge_vla.runtime.gpu.kernels.tiles import Reader
from edge_vla.runtime.gpu.kernels.weights import (
    PLAIN,
    Int4Weight,
    Int8Weight,
    RowFormat,
    Weight,
    repack_int4,
    repack_int8,
    summed,
)

REPACK_CHUNK: Final = 8 << 20  # weights repacked at a time; each takes about ten bytes of scratch


@dataclass(frozen=True)
class Product:
    """`gemv(x (M <= 8, K))` and `gemm(x (M, K))` give (M, N), or partial sums (S, M, N) in float32.

    `gemv` reads rows of the working type, `gemm` rows in `row_format`. `rounds_prefill`: `gemm` rounds rows that `gemv`
    does not.
    """

    gemv: Callable[[Tensor], Tensor]
    gemm: Callable[[Any], Tensor]
    row_format: RowFormat
    names: tuple[str, str]
    bytes: int
    rounds_prefill: bool = False
    weight: Weight | None = None  # where `gemv` is one kernel that reads it


def product(parts: Sequence[PackedWeight], config: GpuConfig) -> Product:
    """One product whose outputs are those of `parts` in order. Parts are on the device, in the artifact's layout."""
    if config.activations == "8" and len({part.scheme for part in parts}) > 1:
        config = replace(config, activations="16")  # they would read rows in different formats
    made = [_one(part, config) for part in parts]
    if len(made) == 1:
        return made[0]
    gemv_names, gemm_names = (tuple(dict.fromkeys(one.names[i] for one in made)) for i in range(2))
    return Product(
        lambda x: torch.cat([summed(one.gemv(x), config.dtype) for one in made], dim=-1),
        lambda x: torch.cat([summed(one.gemm(x), config.dtype) for one in made], dim=-1),
        made[0].row_format,
        ("+".join(gemv_names), "+".join(gemm_names)),
        sum(one.bytes for one in made),
        any(one.rounds_prefill for one in made),
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
    weight = packed.codes.to(config.dtype)

    def gemv(x: Tensor) -> Tensor:
        return config.kernels.w16_gemv(x, weight)

    return Product(gemv, lambda x: F.linear(x, weight), PLAIN, ("w16_gemv", "torch"), weight.nbytes, weight=weight)


def _int4(packed: PackedWeight, config: GpuConfig) -> Product:
    weight, use = repack(packed), config.kernels

    def gemv(x: Tensor) -> Tensor:
        return use.w4a16_gemv(x, weight)

    if config.activations == "16":
        return Product(
            gemv,
            lambda x: use.w4a16_gemm(x, weight, reader="decoder"),
            PLAIN,
            ("w4a16_gemv", "w4a16_gemm"),
            weight.bytes,
            weight=weight,
        )
    return Product(
        gemv,
        lambda x: use.w4a8_gemm(x, weight, config.dtype, reader="decoder"),
        "int8 for int4",
        ("w4a16_gemv", "w4a8_gemm"),
        weight.bytes,
        rounds_prefill=True,
        weight=weight,
    )


def _int8(packed: PackedWeight, config: GpuConfig) -> Product:
    weight = repack_int8(packed)
    row_format, gemm = int8_gemm(weight, config, reader="decoder")
    rounds = row_format != PLAIN
    return Product(
        lambda x: config.kernels.w8a16_gemv(x, weight),
        gemm,
        row_format,
        ("w8a16_gemv", "w8a8_gemm" if rounds else "w8a16_gemm"),
        weight.bytes,
        rounds,
        weight,
    )


def _w8a8(packed: PackedWeight, config: GpuConfig) -> Product:
    """This format defines its inputs as int8, for one row as for many."""
    weight = repack_int8(replace(packed, scheme=Scheme.INT8))
    row_format, gemm = int8_gemm(weight, replace(config, activations="8"), reader="decoder")
    return Product(
        lambda x: gemm(config.kernels.quantise_rows(x, row_format)),
        gemm,
        row_format,
        ("w8a8_gemm", "w8a8_gemm"),
        weight.bytes,
    )


def int8_gemm(
    weight: Int8Weight, config: GpuConfig, reader: Reader, bias: Tensor | None = None
) -> tuple[RowFormat, Callable[[Any], Tensor]]:
    """The rows that the gemm of an int8 weight reads, and the gemm; for its `reader`, "torch" where it adds a bias."""
    if config.activations == "8":
        return "int8", lambda x: config.kernels.w8a8_gemm(x, weight, config.dtype, reader=reader, bias=bias)
    return PLAIN, lambda x: config.kernels.w8a16_gemm(x, weight, reader=reader, bias=bias)


def repack(packed: PackedWeight) -> Int4Weight:
    """`repack_int4` in chunks of outputs, which bounds the scratch memory."""
    (n, k), scales = packed.shape, packed.scales
    assert scales is not None, "int4 has scales"
    step, whole = max(1, REPACK_CHUNK // k), None
    for at in range(0, n, step):
        rows = slice(at, min(at + step, n))
        shape = (rows.stop - at, k)
        chunk = repack_int4(replace(packed, shape=shape, codes=packed.codes[rows], scales=scales[rows]))
        if step >= n:
            return chunk
        if whole is None:
            blocks, groups = chunk.codes.shape[0], chunk.scales.shape[0]
            codes = chunk.codes.new_empty(blocks, n, chunk.codes.shape[2])
            levels = chunk.levels.new_empty(n)
            whole = Int4Weight(codes, chunk.scales.new_empty(groups, n), levels, packed.shape, chunk.group)
        whole.codes[:, rows], whole.scales[:, rows], whole.levels[rows] = chunk.codes, chunk.scales, chunk.levels
    assert whole is not None, "a weight has outputs"
    return whole
