"""What `benchmarks.gpu.tune` tries: every product of a policy, and for each the tiles that a chip could hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from itertools import product as combinations
from typing import Final

from torch import Tensor

from benchmarks.gpu.kernel_checks.check import RandomInputs
from edge_vla.quant import Scheme
from edge_vla.runtime.gpu.kernels import w4a8, w4a16, w8, w8a8, w16
from edge_vla.runtime.gpu.kernels.tiles import BITS, GEMV_ROWS, Chip, Reader, Tile
from edge_vla.runtime.gpu.kernels.weights import quantised, repack_int4, repack_int8
from edge_vla.spec import PolicySpec

KINDS: Final = (  # what pays most comes first
    "w4a16_gemv",
    "w16_gemv",
    "w4a16_gemm",
    "w4a8_gemm",
    "w8a8_tower",
    "w8a16_tower",
    "w8a16_gemv",
    "w8a8_gemm",
    "w8a16_gemm",
)
MOST_SUMS: Final = 160  # registers of a thread for sums: beyond that they spill
PROGRAMS_PER_SM: Final = (1, 2, 3, 4, 6)


@dataclass(frozen=True, slots=True)
class Shape:
    """`kind` is one of KINDS. `biased`: a tower's product that is read with its bias, whole."""

    kind: str
    name: str
    m: int
    n: int
    k: int
    biased: bool = False

    @property
    def reader(self) -> Reader:
        """Of a GEMM's product."""
        return "torch" if self.biased else "tower" if self.kind.endswith("tower") else "decoder"

    @property
    def format(self) -> str:
        return self.kind.partition("_")[0]

    @property
    def kernel(self) -> str:
        return f"{self.format}_{'gemv' if self.kind.endswith('gemv') else 'gemm'}"


@dataclass(frozen=True, slots=True)
class Work:
    """One product: `launch` with a tile, or with None as the engine does; `truth` is the reference's (M, N)."""

    launch: Callable[[Tile | None], Tensor]
    truth: Callable[[], Tensor]
    moved_bytes: int
    operations: int


def shapes(spec: PolicySpec, prefill: int, kinds: tuple[str, ...]) -> Iterator[Shape]:
    decoder = spec.decoder
    linears = {
        "gate_up": (2 * decoder.mlp_width, decoder.width),
        "qkv": (decoder.width + 2 * decoder.kv_width, decoder.width),
        "down_proj": (decoder.width, decoder.mlp_width),
        "o_proj": (decoder.width, decoder.width),
    }
    for kind in kinds:
        if kind.endswith("tower"):
            yield from _towers(spec, kind)
        else:
            rows = 1 if kind.endswith("gemv") else prefill
            yield from (Shape(kind, name, rows, n, k) for name, (n, k) in linears.items())


def _towers(spec: PolicySpec, kind: str) -> Iterator[Shape]:
    for tower in spec.towers:
        rows, width, mlp = tower.patches + tower.prefix, tower.width, tower.mlp_width
        linears = {"qkv": (3 * width, width), "fc1": (mlp, width), "fc2": (width, mlp), "proj": (width, width)}
        for name, (n, k) in linears.items():
            yield Shape(kind, f"{tower.name} {name}", rows, n, k, biased=name == "qkv")
    widths = spec.projector_widths
    for index, (k, n) in enumerate(pairwise(widths), 1):
        yield Shape(kind, f"projector fc{index}", spec.patches, n, k, biased=index == len(widths) - 1)


def work(shape: Shape, inputs: RandomInputs, group: int) -> Work:
    """On the device of `inputs`."""
    x, n, k, dtype = inputs.rows(shape.m, shape.k), shape.n, shape.k, inputs.dtype
    operations, out_bytes = 2 * shape.m * n * k, 2 * shape.m * n
    if shape.format.startswith("w4"):
        weight = repack_int4(inputs.packed(Scheme.INT4, n, k, group))
        moved = weight.bytes + out_bytes
        if shape.kernel == "w4a16_gemv":
            return Work(lambda t: w4a16.kernel_gemv(x, weight, t), lambda: w4a16.reference_gemv(x, weight)[0], moved, 0)
        if shape.format == "w4a16":
            launch: Callable[[Tile | None], Tensor] = lambda t: w4a16.kernel_gemm(x, weight, t, reader=shape.reader)  # noqa: E731
            return Work(launch, lambda: w4a16.reference_gemm(x, weight), moved, operations)
        rows4 = quantised(x, for_int4=True)
        launch = lambda t: w4a8.kernel(rows4, weight, dtype, t, reader=shape.reader)  # noqa: E731
        return Work(launch, lambda: w4a8.reference(rows4, weight, dtype), moved, operations)
    if shape.format == "w16":
        dense = inputs.rows(n, k)
        moved = dense.nbytes + out_bytes
        return Work(lambda t: w16.kernel_gemv(x, dense, t), lambda: w16.reference_gemv(x, dense)[0], moved, 0)
    weight8 = repack_int8(inputs.packed(Scheme.INT8, n, k))
    moved, bias = weight8.bytes + out_bytes, inputs.rows(n) if shape.biased else None
    if shape.kernel == "w8a16_gemv":
        return Work(lambda t: w8.kernel_a16_gemv(x, weight8, t), lambda: w8.reference_a16_gemv(x, weight8)[0], moved, 0)
    if shape.format == "w8a16":
        launch = lambda t: w8.kernel_a16_gemm(x, weight8, t, shape.reader, bias)  # noqa: E731
        return Work(launch, lambda: w8.reference_a16_gemm(x, weight8, bias=bias), moved, operations)
    rows8 = quantised(x)
    launch = lambda t: w8a8.kernel(rows8, weight8, dtype, t, shape.reader, bias)  # noqa: E731
    return Work(launch, lambda: w8a8.reference(rows8, weight8, dtype, bias=bias), moved, operations)


def candidates(shape: Shape, chip: Chip) -> list[Tile]:
    """Tiles that fit, with their splits; those that differ in splits alone are neighbours."""
    return list(dict.fromkeys(_gemv(shape, chip) if shape.kernel.endswith("gemv") else _gemm(shape, chip)))


def _gemv(shape: Shape, chip: Chip) -> Iterator[Tile]:
    deep = {"w4a16": (128,), "w8a16": (128, 256), "w16": (64, 128, 256)}[shape.format]
    for block_n, warps, stages, block_k in combinations((32, 64, 128), (2, 4, 8), (3, 5), deep):
        if not 8 <= block_n // warps <= 32:  # outputs of a warp: 16 are one tensor-core instruction
            continue
        programs, blocks = -(-shape.n // block_n), -(-shape.k // block_k)
        for each in PROGRAMS_PER_SM:
            splits = max(1, min(16, blocks, round(each * chip.sm_count / programs)))
            yield from _fitting(Tile(block_n, GEMV_ROWS, block_k, warps, stages, 1, splits), chip, shape)


def _gemm(shape: Shape, chip: Chip) -> Iterator[Tile]:
    deep = (64, 128) if shape.format == "w8a16" else (128,)
    rows = ((128, 3), (128, 2), (128, 1), (64, 2), (64, 1))
    for (block_m, row_tiles), block_n, warps, more, block_k in combinations(rows, (64, 128), (4, 8), (0, 1), deep):
        stages = (2 if block_m * row_tiles > 128 else 3) + more + (shape.format == "w8a8" or block_k == 64)
        tile = Tile(block_n, block_m, block_k, warps, stages, row_tiles, 1)
        shared = tile.rows(shape.m)
        held = sum(shared.sizes)
        sums = block_n * held // (32 * warps)
        if not 16 <= sums <= MOST_SUMS or (warps == 8 and block_n == 64 and held <= 64):
            continue
        converted = block_n * block_k // 2 // (32 * warps) if shape.format.endswith("a16") else 0
        if converted and sums + converted > (MOST_SUMS + 16 if warps == 8 else MOST_SUMS - 16):
            continue
        for splits in {"torch": (1,), "tower": (1, 2, 3, 4), "decoder": (1, 2, 4)}[shape.reader]:
            programs = shared.programs * -(-shape.n // block_n)
            if splits == 1 or programs * splits <= 6 * chip.sm_count:
                yield from _fitting(replace(tile, splits=splits), chip, shape)


def _fitting(tile: Tile, chip: Chip, shape: Shape) -> Iterator[Tile]:
    """The tile, with fewer stages where shared memory does not hold all; none where it does not hold two."""
    weight_bits, row_bits = BITS[shape.format]
    converted = tile.block_n * tile.block_k * row_bits // 8 if weight_bits != row_bits else 0
    held = sum(tile.rows(shape.m).sizes) if shape.kernel.endswith("gemm") else GEMV_ROWS
    stage = tile.block_k * (held * row_bits + tile.block_n * weight_bits) // 8
    stages = min(tile.stages, (chip.shared_bytes - converted) // stage)
    if stages >= 2:
        yield replace(tile, stages=stages)
