"""Roofline of one action: the least that each stage must cost, and the most that this device can do.

A pass reads each of its weights once, and the keys and values that its rows attend to; it multiplies every row by every
weight. Its limit is the slower of the two at the device's ceilings, as if they overlapped perfectly. Activations,
embeddings and norms are left out: they are small beside the weights and may never leave the cache, so the result is a
lower bound on time. (A network so small that its weights stay in the cache can beat its limit.) Ceilings are data:
measured here, or taken from a data sheet.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch

from edge_vla.artifact import Linear
from edge_vla.errors import BackendError, UsageError
from edge_vla.quant import plan, stored_bytes
from edge_vla.runtime.padding import padded
from edge_vla.spec import PolicySpec, TowerSpec

SIXTEEN: Final = 2  # bytes of a 16-bit number
BEST_OF: Final = 5
SHORTEST_S: Final = 0.02  # one timing repeats its work until it takes this long
BUFFER: Final = 512 << 20  # bytes, much larger than any cache
CHANNELS: Final = 3

VISION, PREFILL, DECODE = "vision", "prefill", "decode"  # as a policy names its stages
WHOLE: Final = "whole action"


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
    """Bandwidth of main or device memory, GEMM rates by type in operations a second, and how both were obtained."""

    read_bytes_per_s: float
    gemm_flops: Mapping[str, float]
    how: str

    def limit_ms(self, cost: Cost) -> tuple[float, float]:
        """Milliseconds of all its passes: for the bytes alone, and for the arithmetic alone."""
        rate = self.gemm_flops.get(cost.arithmetic)
        if rate is None:
            raise UsageError(f"no ceiling for {cost.arithmetic} arithmetic: choose one of {sorted(self.gemm_flops)}")
        scale = 1e3 * cost.times
        return scale * cost.bytes / self.read_bytes_per_s, scale * cost.operations / rate

    def or_better(self, other: Ceilings) -> Ceilings:
        """The higher of each rate, from two measurements of one device: other load only ever lowers a rate."""
        rates = {name: max(rate, other.gemm_flops.get(name, 0.0)) for name, rate in self.gemm_flops.items()}
        return Ceilings(max(self.read_bytes_per_s, other.read_bytes_per_s), rates, f"better of two, each {self.how}")


@dataclass(frozen=True, kw_only=True)
class StageLimit:
    """A stage, or one kind of its passes. `share` is the limit over the measured time: 1 cannot be beaten."""

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
    """What a device's ceilings allow, stage by stage; the last entry is the whole action."""

    model: str
    ceilings: Ceilings
    stages: list[StageLimit]


def uniform(spec: PolicySpec, bits: int, group: int | None = None) -> int:
    """Bytes of all the decoder's linears at one bit width, as `export` would store them."""
    each = []
    for name, shape in spec.decoder.linears().items():
        scheme, fitting_group = plan(bits, shape[1], group, name)
        each.append(stored_bytes(scheme, shape, fitting_group))
    return spec.decoder.layers * sum(each)


def stored(layers: Sequence[Mapping[str, Linear]]) -> int:
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

    `prompt` tokens and the image are prefilled. `head_rows` defaults to the action rows, not the whole vocabulary.
    """
    decoder = spec.decoder
    weights = decoder.layers * sum(map(math.prod, decoder.linears().values()))
    # The norms of each layer, and the one after all of them.
    streamed = decoder_bytes + SIXTEEN * decoder.width * (2 * decoder.layers + 1)
    rows, head = prompt + spec.patches, (head_rows or spec.action.bins) * decoder.width
    # Step i attends to everything prefilled and i rows more; its own row is written and read once.
    context = rows + dims / 2
    cache = 2 * decoder.layers * decoder.kv_width * cache_bits / 8  # keys and values of one row
    # Scores and mixing: two products over the head's width, for each query row and each row that it attends to.
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
        Cost("one step", DECODE, streamed + context * cache, 2 * weights + attention * context, dims - 1, arithmetic),
        Cost("head", DECODE, SIXTEEN * head, 2 * head, dims, arithmetic),
    ]


def limits(
    model: str, passes: Sequence[Cost], ceilings: Ceilings, measured_ms: Mapping[str, float] | None = None
) -> Limits:
    """Limit of each stage, followed by its passes where it has several; `measured_ms` is p50 by stage."""
    measured, rows = measured_ms or {}, list[StageLimit]()
    stages = list(dict.fromkeys(cost.stage for cost in passes))
    for stage in stages:
        own = [cost for cost in passes if cost.stage == stage]
        rows.append(_stage_limit(stage, own, ceilings, measured.get(stage)))
        if len(own) > 1:
            rows += [_stage_limit(f"{stage}: {_repeated(cost)}", [cost], ceilings, None) for cost in own]
    whole = sum(measured[stage] for stage in stages) if set(stages) <= measured.keys() else None
    return Limits(model=model, ceilings=ceilings, stages=[*rows, _stage_limit(WHOLE, passes, ceilings, whole)])


def measure(spec: PolicySpec, device: torch.device, prompt: int = 32, buffer: int = BUFFER) -> Ceilings:
    """This device's ceilings: reading a large buffer, and GEMMs of the shapes of this network's prefill."""
    generator = torch.Generator(device).manual_seed(0)
    out_features, in_features = spec.decoder.linears()["mlp.gate_proj"]
    rows = padded(prompt + spec.patches)  # as in the decoding loop, and as int8 GEMMs require

    def product(dtype: torch.dtype) -> float:
        left = torch.randn(rows, in_features, generator=generator, device=device).to(dtype)
        right = torch.randn(out_features, in_features, generator=generator, device=device).to(dtype)
        if dtype is torch.int8:
            return _best(lambda: torch._int_mm(left, right.T), device)
        return _best(lambda: left @ right.T, device)

    rates = {}
    for name, dtype in {"bf16": torch.bfloat16, "fp32": torch.float32, "int8": torch.int8}.items():
        try:
            rates[name] = 2 * rows * out_features * in_features / product(dtype)
        except RuntimeError:  # no such GEMM for this device or these shapes
            if name != "int8":
                raise
    threads = f"{torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    read = "summing" if device.type == "cpu" else "copying"
    how = (
        f"best of {BEST_OF} on {threads}: {read} {buffer >> 20} MiB; GEMMs of {rows} rows with a weight of "
        f"{out_features} x {in_features}"
    )
    return Ceilings(_reading(device, buffer), rates, how)


def _reading(device: torch.device, buffer: int) -> float:
    """Bytes a second: a copy reads and writes on CUDA, a sum only reads on a CPU."""
    try:
        source = torch.zeros(buffer // 4, device=device)
    except RuntimeError as error:
        raise BackendError(
            f"cannot allocate {buffer >> 20} MiB to measure bandwidth: free some memory ({error})"
        ) from error
    if device.type == "cpu":
        source.fill_(1)  # touched: untouched pages are all the same page of zeros
        return source.nbytes / _best(lambda: source.sum(), device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device)


def _best(once: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of `BEST_OF` timings, after one discarded run."""

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
    """The blocks that run: every token times every weight, and attention between all tokens."""
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
    weights = sum(in_features * out_features for in_features, out_features in pairwise(widths))
    return Cost("projector", VISION, weights * bits / 8, 2 * weights * spec.patches, arithmetic=arithmetic)


def _stage_limit(name: str, passes: Sequence[Cost], ceilings: Ceilings, measured: float | None) -> StageLimit:
    """Passes follow one another: each waits for the slower of its bytes and its arithmetic."""
    pairs = [ceilings.limit_ms(cost) for cost in passes]
    limit = sum(map(max, pairs))
    return StageLimit(
        name=name,
        bytes=sum(cost.bytes * cost.times for cost in passes),
        operations=sum(cost.operations * cost.times for cost in passes),
        bytes_ms=sum(read for read, _ in pairs),
        operations_ms=sum(computed for _, computed in pairs),
        limit_ms=limit,
        measured_ms=measured,
        share=limit / measured if measured else None,
    )


def _repeated(cost: Cost) -> str:
    return cost.name if cost.times == 1 else f"{cost.name} ({cost.times} times)"
