"""The checks of every kernel at the shapes of one policy: what `make bench-gpu` evaluates and times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks.gpu.kernel_checks.check import KernelCheck, RandomInputs
from benchmarks.gpu.kernel_checks.passes import FORMATS, whole_pass
from benchmarks.gpu.kernel_checks.products import PRODUCTS, product
from benchmarks.gpu.kernel_checks.rows import (
    attend,
    attend_pass,
    choose,
    int8_rows,
    norm,
    swiglu,
    tower_gelu,
    tower_norm,
)
from edge_vla.runtime.gpu.kernels.tiles import GEMV_ROWS
from edge_vla.runtime.gpu.kernels.weights import RowFormat
from edge_vla.spec import PolicySpec

PARTS = 4  # partial sums that a row kernel adds up, as a gemv leaves them
INT8_FORMATS: tuple[RowFormat, ...] = ("int8", "int8 for int4")


@dataclass(frozen=True, slots=True)
class Case:
    """A check at one shape, made on demand: the weights of all of them would not fit in memory together."""

    name: str
    kernel: str
    make: Callable[[RandomInputs], KernelCheck]


def of_policy(spec: PolicySpec, prefill: int, group: int = 128) -> list[Case]:
    """`prefill` rows of a prompt; a gemv's rows are a decode step's one and a verifying pass's eight."""
    return [*_products(spec, prefill, group), *_decoder(spec, prefill), *_passes(spec, prefill, group), *_towers(spec)]


def _products(spec: PolicySpec, prefill: int, group: int) -> list[Case]:
    decoder = spec.decoder
    shapes = {
        "qkv": (decoder.width + 2 * decoder.kv_width, decoder.width),
        "o_proj": (decoder.width, decoder.width),
        "gate_up": (2 * decoder.mlp_width, decoder.width),
        "down_proj": (decoder.width, decoder.mlp_width),
    }
    return [
        Case(f"{kind} {layer} {n}x{k}, {rows} rows", kind, partial(product, kind=kind, m=rows, n=n, k=k, group=group))
        for kind in PRODUCTS
        for layer, (n, k) in shapes.items()
        for rows in ((1, GEMV_ROWS) if kind.endswith("gemv") else (prefill,))
    ]


def _decoder(spec: PolicySpec, prefill: int) -> list[Case]:
    decoder = spec.decoder
    length = prefill + 2 * GEMV_ROWS
    cases = list[Case]()
    for rows, parts in ((1, PARTS), (GEMV_ROWS, PARTS), (prefill, 0)):
        made = {
            "rms_norm": partial(norm, rows=rows, width=decoder.width, parts=parts),
            "swiglu": partial(swiglu, rows=rows, width=decoder.mlp_width, parts=parts),
        }
        cases += [Case(f"{name}, {rows} rows", name, make) for name, make in made.items()]
    for rows in (1, GEMV_ROWS):
        make = partial(attend_pass, spec=decoder, rows=rows, start=prefill, length=length, parts=PARTS)
        cases.append(Case(f"pass_attention, {rows} rows", "pass_attention", make))
    for name, parts in (("prefill_attention", 0), (f"prefill_attention of {PARTS} parts", PARTS)):
        make = partial(attend, spec=decoder, rows=prefill, start=0, length=length, parts=parts)
        cases.append(Case(f"{name}, {prefill} rows", "prefill_attention", make))
    for row_format in INT8_FORMATS:
        made = {
            "rms_norm": partial(norm, rows=prefill, width=decoder.width, parts=0, row_format=row_format),
            "swiglu": partial(swiglu, rows=prefill, width=decoder.mlp_width, parts=0, row_format=row_format),
        }
        cases += [Case(f"{name} to {row_format}, {prefill} rows", name, make) for name, make in made.items()]
    fed = GEMV_ROWS - 2  # of an action's seven dimensions
    for rows, first in ((1, 0), (fed, 1)):
        make = partial(choose, rows=rows, width=decoder.width, bins=spec.action.bins, first=first, fed=fed)
        cases.append(Case(f"head, {rows} rows", "head", make))
    for width in (decoder.width, decoder.mlp_width):
        make = partial(int8_rows, rows=prefill, width=width, row_format="int8 for int4")
        cases.append(Case(f"quantise_rows {width}, {prefill} rows", "quantise_rows", make))
    return cases


def _passes(spec: PolicySpec, prefill: int, group: int) -> list[Case]:
    """Two layers, whose code is that of any number. A step's one row is a kernel of its own, with fewer barriers."""
    made = partial(whole_pass, spec=spec.decoder, start=prefill, group=group)
    return [
        Case(f"decode_pass {name}, {rows} rows", "decode_pass", partial(made, name=name, rows=rows))
        for name in FORMATS
        for rows in (1, GEMV_ROWS)
    ]


def _towers(spec: PolicySpec) -> list[Case]:
    cases = list[Case]()
    for tower in spec.towers:
        rows, width = tower.patches + tower.prefix, tower.mlp_width
        made = {
            f"layer_norm {tower.width}": ("layer_norm", partial(tower_norm, width=tower.width, parts=0)),
            f"layer_norm {tower.width} of 3 parts": ("layer_norm", partial(tower_norm, width=tower.width, parts=3)),
            f"gelu {width}": ("gelu", partial(tower_gelu, width=width, parts=0)),
        }
        cases += [
            Case(f"{name}, {rows} rows", kernel, partial(make, rows=rows)) for name, (kernel, make) in made.items()
        ]
    rows, width = spec.patches, spec.projector_widths[-1]
    of_parts = partial(tower_gelu, rows=rows, width=width, parts=2)
    return [*cases, Case(f"gelu {width} of 2 parts, {rows} rows", "gelu", of_parts)]
