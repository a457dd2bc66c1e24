"""The checks of every kernel at the shapes of one policy: what `make bench-gpu` checks and times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks.gpu.kernel_checks.check import KernelCheck, Maker
from benchmarks.gpu.kernel_checks.products import PRODUCTS, product
from benchmarks.gpu.kernel_checks.rows import (
    attend,
    choose,
    gate,
    gate_int8,
    int8_rows,
    norm,
    norm_int8,
    tower_gelu,
    tower_norm,
    turn,
)
from edge_vla.runtime.gpu.kernels.tiles import GEMV_ROWS
from edge_vla.spec import PolicySpec

PARTS = 4  # partial sums that a row kernel adds up, as a product of a few rows leaves them


@dataclass(frozen=True, slots=True)
class Case:
    """A check at one shape, not made yet: weights of a whole policy would not fit beside one another."""

    name: str
    make: Callable[[Maker], KernelCheck]


def of_policy(spec: PolicySpec, prefill: int, group: int = 128) -> list[Case]:
    """`prefill` rows of a prompt; few rows are a decode step's one and a verifying pass's eight."""
    return [*_products(spec, prefill, group), *_decoder(spec, prefill), *_towers(spec)]


def _products(spec: PolicySpec, prefill: int, group: int) -> list[Case]:
    decoder = spec.decoder
    shapes = {
        "qkv": (decoder.width + 2 * decoder.kv_width, decoder.width),
        "o_proj": (decoder.width, decoder.width),
        "gate_up": (2 * decoder.mlp_width, decoder.width),
        "down_proj": (decoder.width, decoder.mlp_width),
    }
    return [
        Case(
            f"{kind} {layer} {outer}x{inner}, {rows} rows",
            partial(product, kind=kind, rows=rows, outer=outer, inner=inner, group=group),
        )
        for kind in PRODUCTS
        for layer, (outer, inner) in shapes.items()
        for rows in ((1, GEMV_ROWS) if kind.endswith("gemv") else (prefill,))
    ]


def _decoder(spec: PolicySpec, prefill: int) -> list[Case]:
    decoder = spec.decoder
    length = prefill + 2 * GEMV_ROWS
    cases = list[Case]()
    for rows, start, parts in ((1, prefill, PARTS), (GEMV_ROWS, prefill, PARTS), (prefill, 0, 0)):
        made = {
            "rms_norm": partial(norm, rows=rows, width=decoder.width, parts=parts),
            "swiglu": partial(gate, rows=rows, width=decoder.mlp_width, parts=parts),
            "rotary": partial(turn, spec=decoder, rows=rows, start=start, length=length, parts=parts),
            "attention": partial(attend, spec=decoder, rows=rows, start=start, length=length),
        }
        cases += [Case(f"{name}, {rows} rows", make) for name, make in made.items()]
    for for_int4 in (False, True):
        what = f"to int8{' for int4' if for_int4 else ''}, {prefill} rows"
        cases += [
            Case(f"rms_norm {what}", partial(norm_int8, rows=prefill, width=decoder.width, for_int4=for_int4)),
            Case(f"swiglu {what}", partial(gate_int8, rows=prefill, width=decoder.mlp_width, for_int4=for_int4)),
        ]
    for rows in (1, GEMV_ROWS):
        cases.append(Case(f"head, {rows} rows", partial(choose, rows=rows, width=decoder.width, bins=spec.action.bins)))
    for width in (decoder.width, decoder.mlp_width):
        make = partial(int8_rows, rows=prefill, width=width, for_int4=True)
        cases.append(Case(f"quantise_rows {width}, {prefill} rows", make))
    return cases


def _towers(spec: PolicySpec) -> list[Case]:
    cases = list[Case]()
    for tower in spec.towers:
        rows, width = tower.patches + tower.prefix, tower.mlp_width
        cases += [
            Case(f"layer_norm {tower.width}, {rows} rows", partial(tower_norm, rows=rows, width=tower.width)),
            Case(f"gelu {width}, {rows} rows", partial(tower_gelu, rows=rows, width=width)),
        ]
    return cases
