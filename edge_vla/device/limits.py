"""What one action must cost at least, stage by stage, and what this device can do at most.

A pass reads each of its weights once, and the keys and values that its rows look at; it multiplies every row with every
weight. Its limit is the slower of the two at the device's ceilings, as if they overlapped perfectly. Activations,
embeddings and norms of a row are left out: they are small beside the weights and may never leave the cache, so what is
given here is a bound from below. (A network so small that its weights stay in the cache can be faster than memory, and
than its limit.) Ceilings are data: measured here, or those of a device on paper.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Protocol

import torch

from edge_vla.errors import BackendError, UsageError
from edge_vla.quant.formats import Scheme, plan, stored_bytes
from edge_vla.runtime.padding import padded
from edge_vla.spec import PolicySpec, TowerSpec

SIXTEEN: Final = 2  # bytes of a 16-bit number
BEST_OF: Final = 5
SHORTEST_S: Final = 0.02  # one timing repeats its work until it takes this long
BUFFER: Final = 512 << 20  # bytes, much larger than any cache
CHANNELS: Final = 3

VISION, PREFILL, DECODE = "vision", "prefill", "decode"  # as a policy names its stages
WHOLE: Final = "whole action"


class Stored(Protocol):
    """How a linear layer is stored: `artifact.Linear`, or anything with these."""

    @property
    def scheme(self) -> Scheme: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def group(self) -> int | None: ...


@dataclass(frozen=True)
class Cost:
    """One pass: bytes it must read, operations it must do (a multiplication and an addition are two), how often."""

    name: str
    stage: str
    bytes: float
    operations: float
    times: int = 1
    arithmetic: str = "bf16"


@dataclass(frozen=True)
class Ceilings:
    """`read_bytes_per_s` from main or device memory; `gemm_flops` by type, operations a second; `how` they were got."""

    read_bytes_per_s: float
    gemm_flops: Mapping[str, float]
    how: str

    def limit_ms(self, cost: Cost) -> tuple[float, float]:
        """Milliseconds of all its passes for the bytes alone, and for the arithmetic alone."""
        rate = self.gemm_flops.get(cost.arithmetic)
        if rate is None:
            raise UsageError(f"no ceiling for {cost.arithmetic} arithmetic: there are {sorted(self.gemm_flops)}")
        scale = 1e3 * cost.times
        return scale * cost.bytes / self.read_bytes_per_s, scale * cost.operations / rate

    def or_better(self, other: Ceilings) -> Ceilings:
        """The higher of each rate, of two measurements of one device: a disturbance only ever lowers one."""
        rates = {name: max(rate, other.gemm_flops.get(name, 0.0)) for name, rate in self.gemm_flops.items()}
        return Ceilings(max(self.read_bytes_per_s, other.read_bytes_per_s), rates, f"better of two, each {self.how}")

    def to_json(self) -> dict[str, Any]:
        return {"copy_bytes_per_s": self.read_bytes_per_s, "gemm_flops": dict(self.gemm_flops), "how": self.how}


@dataclass(frozen=True, kw_only=True)
class StageLimit:
    """A stage or one kind of its passes. `share` is the limit over what was measured: 1 could not be beaten."""

    name: str
    bytes: float
    operations: float
    bytes_ms: float
    operations_ms: float
    limit_ms: float
    measured_ms: float | None
    share: float | None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the ceilings of a device allow, stage by stage; the last is the whole action."""

    model: str
    ceilings: Ceilings
    stages: list[StageLimit]


def uniform(spec: PolicySpec, bits: int, group: int | None = None) -> int:
    """Bytes of all the decoder's linears in one number of bits, as `export` would store them."""
    shapes = spec.decoder.linears()
    each = (stored_bytes(*_storage(bits, shape, group, name)) for name, shape in shapes.items())
    return spec.decoder.layers * sum(each)


def stored(layers: Sequence[Mapping[str, Stored]]) -> int:
    """Bytes of an artifact's decoder linears, from `manifest.layers`."""
    linears = (linear for layer in layers for linear in layer.values())
    return sum(stored_bytes(linear.scheme, linear.shape, linear.group) for linear in linears)


def costs(
    spec: PolicySpec,
    decoder_bytes: int,
    prompt: int,
    dims: int,
    *,
    head_rows: int | None = None,
    vision_bits: int = 16,
    cache_bits: int = 16,
    arithmetic: str = "bf16",
) -> list[Cost]:
    """Every pass of one action: towers, projector, prefill, `dims` - 1 decode steps, `dims` heads.

    `prompt` tokens and the image are prefilled. `head_rows`: the action rows unless the whole vocabulary is computed.
    """
    decoder = spec.decoder
    weights = decoder.layers * sum(outer * inner for outer, inner in decoder.linears().values())
    # The norms of each layer, and the one after all of them.
    streamed = decoder_bytes + SIXTEEN * decoder.width * (2 * decoder.layers + 1)
    rows, head = prompt + spec.patches, (head_rows or spec.action.bins) * decoder.width
    # Step i looks at everything prefilled and i rows more; its own row is counted as written and read once.
    seen = rows + dims / 2
    cache = 2 * decoder.layers * decoder.kv_width * cache_bits / 8  # keys and values of one row
    # Scores and mixing: two products over the head's width, for each query row and each row that it may see.
    attention = 4 * decoder.layers * decoder.width
    return [
        _towers(spec, vision_bits, arithmetic),
        _projector(spec, vision_bits, arithmetic),
        Cost(
            "prefill",
            PREFILL,
            streamed + rows * cache,
            2 * weights * rows + attention * rows * (rows + 1) / 2,
            arithmetic=arithmetic,
        ),
        Cost("one step", DECODE, streamed + seen * cache, 2 * weights + attention * seen, dims - 1, arithmetic),
        Cost("head", DECODE, SIXTEEN * head, 2 * head, dims, arithmetic),
    ]


def limits(
    model: str, passes: Sequence[Cost], ceilings: Ceilings, measured_ms: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """LIMITS of the result document. A stage of several passes is followed by them; `measured_ms` is p50 by stage.

    `share` is the limit over what was measured: 1 could not be beaten.
    """
    measured, rows = measured_ms or {}, list[dict[str, Any]]()
    for stage in dict.fromkeys(cost.stage for cost in passes):
        parts = [_row(f"{stage}: {_often(cost)}", [cost], ceilings, None) for cost in passes if cost.stage == stage]
        rows.append(_row(stage, [cost for cost in passes if cost.stage == stage], ceilings, measured.get(stage)))
        rows += parts if len(parts) > 1 else []
    stages = {cost.stage for cost in passes}
    known = stages <= measured.keys()
    rows.append(_row(WHOLE, passes, ceilings, sum(measured[stage] for stage in stages) if known else None))
    return {"model": model, "ceilings": ceilings.to_json(), "stages": rows}


def measure(spec: PolicySpec, device: torch.device, prompt: int = 32, buffer: int = BUFFER) -> Ceilings:
    """This device's ceilings: reading a large buffer, and products at the shapes of this network's prefill."""
    generator = torch.Generator(device).manual_seed(0)
    rows, (outer, inner) = prompt + spec.patches, spec.decoder.linears()["mlp.gate_proj"]
    rows = padded(rows)  # as the loop does, and as int8 products want it

    def product(dtype: torch.dtype) -> float:
        left = torch.randn(rows, inner, generator=generator, device=device).to(dtype)
        right = torch.randn(outer, inner, generator=generator, device=device).to(dtype)
        if dtype is torch.int8:
            return _best(lambda: torch._int_mm(left, right.T), device)
        return _best(lambda: left @ right.T, device)

    rates = {}
    for name, dtype in {"bf16": torch.bfloat16, "fp32": torch.float32, "int8": torch.int8}.items():
        try:
            rates[name] = 2 * rows * outer * inner / product(dtype)
        except RuntimeError:  # this device, or these shapes, have no such product
            if name != "int8":
                raise
    threads = f"{torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    read = "summing" if device.type == "cpu" else "copying"
    how = (
        f"best of {BEST_OF} on {threads}: {read} {buffer >> 20} MiB; products of {rows} rows with a weight of "
        f"{outer} x {inner}"
    )
    return Ceilings(_reading(device, buffer), rates, how)


def _reading(device: torch.device, buffer: int) -> float:
    """Bytes a second: a copy reads and writes on CUDA, a sum only reads on a CPU."""
    try:
        source = torch.zeros(buffer // 4, device=device)
    except RuntimeError as error:
        raise BackendError(f"no room for a buffer of {buffer >> 20} MiB to measure bandwidth with: {error}") from error
    if device.type == "cpu":
        source.fill_(1)  # touched: untouched pages are all the same page of zeros
        return source.nbytes / _best(lambda: source.sum(), device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device)


def _best(once: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of `BEST_OF` timings, after one that is thrown away."""

    def timed(repeats: int) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        for _ in range(repeats):
            once()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - started) / repeats

    with torch.inference_mode():
        timed(1)
        repeats = max(1, round(SHORTEST_S / timed(1)))
        return min(timed(repeats) for _ in range(BEST_OF))


def _towers(spec: PolicySpec, bits: int, arithmetic: str) -> Cost:
    """Weights and biases of the blocks that run; every token with every weight; all tokens with all in attention."""
    weights = operations = 0
    for tower in spec.towers:
        block, tokens = _block(tower), tower.patches + tower.prefix
        embedding = tower.width * CHANNELS * tower.patch**2
        weights += tower.used_blocks * block + embedding + tower.width * tokens
        operations += tower.used_blocks * (2 * block * tokens + 4 * tower.width * tokens**2)
        operations += 2 * embedding * tower.patches
    return Cost("towers", VISION, weights * bits / 8, operations, arithmetic=arithmetic)


def _block(tower: TowerSpec) -> int:
    """Weights of queries, keys, values, output and both halves of the MLP."""
    return 4 * tower.width**2 + 2 * tower.width * tower.mlp_width


def _projector(spec: PolicySpec, bits: int, arithmetic: str) -> Cost:
    widths = spec.projector_widths
    weights = sum(inner * outer for inner, outer in pairwise(widths))
    return Cost("projector", VISION, weights * bits / 8, 2 * weights * spec.patches, arithmetic=arithmetic)


def _row(name: str, passes: Sequence[Cost], ceilings: Ceilings, measured: float | None) -> dict[str, Any]:
    """Passes follow one another: each waits for the slower of its bytes and its arithmetic."""
    pairs = [ceilings.limit_ms(cost) for cost in passes]
    limit = sum(map(max, pairs))
    return {
        "name": name,
        "bytes": sum(cost.bytes * cost.times for cost in passes),
        "operations": sum(cost.operations * cost.times for cost in passes),
        "bytes_ms": sum(read for read, _ in pairs),
        "operations_ms": sum(computed for _, computed in pairs),
        "limit_ms": limit,
        "measured_ms": measured,
        "share": limit / measured if measured else None,
    }


def _often(cost: Cost) -> str:
    return cost.name if cost.times == 1 else f"{cost.name} ({cost.times} times)"


def _storage(
    bits: int, shape: tuple[int, int], group: int | None, name: str
) -> tuple[Scheme, tuple[int, int], int | None]:
    scheme, fitting = plan(bits, shape[1], group, name)
    return scheme, shape, fitting
