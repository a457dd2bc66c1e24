"""Memory and time of a policy on a device that is not at hand: `edge-vla plan`. On paper, nothing is measured.

Bytes and operations come from `limits`, a device and its ceilings from `devices`; the share of a ceiling that a stage
can expect to reach is what published engines reached, none of them this one. Knows nothing of artifacts, processes or
this machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from edge_vla.checkpoint import key_table
from edge_vla.checkpoint.keys import EMBEDDINGS, vision_keys
from edge_vla.device import limits
from edge_vla.device.devices import DEVICES, Device
from edge_vla.device.limits import PREFILL, Ceilings, Cost
from edge_vla.errors import UsageError
from edge_vla.spec import PolicySpec
from edge_vla.suggestions import choose

BITS: Final = (16, 8, 4)
VISION_BITS: Final = (16, 8)
ACTIVATIONS: Final = (16, 8)
PROMPT: Final = 32  # tokens of a usual instruction in its prompt
SIXTEEN: Final = 2  # bytes
# Activations, the runtime's own buffers and a CUDA context.
OVERHEAD: Final = (0.2e9, 0.8e9)
FREE: Final = 0.9  # share of a device's memory that one program may count on


@dataclass(frozen=True)
class PlannedStage:
    """`limit_ms` is the roofline; `low_ms` and `high_ms` what the best and the worst published engine would take."""

    name: str
    limit_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class DevicePlan:
    """`memory_bytes` by part; the range adds buffers and context."""

    device: str
    sources: dict[str, str]  # of the device's ceilings
    bits: int
    vision_bits: int
    activations: int  # bits of what a prefill multiplies
    memory_bytes: dict[str, float]
    memory_low_bytes: float
    memory_high_bytes: float
    memory_usable_bytes: float
    fits: Literal["yes", "no", "barely"]
    stages: list[PlannedStage]
    action: PlannedStage
    reached: dict[str, tuple[float, float]]


def plan(
    spec: PolicySpec, device: str, bits: int, dims: int, vision_bits: int = 16, activations: int = 16
) -> DevicePlan:
    """Memory by part with a verdict, and each stage's limit with the range to expect. Raises UsageError."""
    _choice("--device", device, tuple(DEVICES))
    _choice("--bits", bits, BITS)
    _choice("--vision-bits", vision_bits, VISION_BITS)
    _choice("--activations", activations, ACTIVATIONS)
    chip, decoder = DEVICES[device], limits.uniform(spec, bits)
    parts = _memory(spec, decoder, dims, vision_bits, chip.shared)
    low, high = (sum(parts.values()) + extra for extra in OVERHEAD)
    usable = FREE * chip.memory
    passes = limits.costs(spec, decoder, PROMPT, dims, vision_bits=vision_bits)
    stages = _stages(chip, _rounded(passes) if activations == 8 else passes)
    return DevicePlan(
        device=chip.name,
        sources=chip.sources(),
        bits=bits,
        vision_bits=vision_bits,
        activations=activations,
        memory_bytes=parts,
        memory_low_bytes=low,
        memory_high_bytes=high,
        memory_usable_bytes=usable,
        fits="yes" if high <= usable else "no" if low > usable else "barely",
        stages=stages,
        action=PlannedStage(
            "one action",
            sum(stage.limit_ms for stage in stages),
            sum(stage.low_ms for stage in stages),
            sum(stage.high_ms for stage in stages),
        ),
        reached=dict(chip.reached),
    )


def ceilings(chip: Device) -> Ceilings:
    how = "; ".join(f"{what}: {source}" for what, source in chip.sources().items())
    return Ceilings(chip.read.value, {"bf16": chip.bf16.value, "int8": chip.int8.value}, how)


def _stages(chip: Device, passes: Sequence[Cost]) -> list[PlannedStage]:
    return [
        PlannedStage(
            row.name, row.limit_ms, row.limit_ms / chip.reached[row.name][1], row.limit_ms / chip.reached[row.name][0]
        )
        for row in limits.limits(chip.name, passes, ceilings(chip)).stages
        if row.name in chip.reached
    ]


def _rounded(passes: Sequence[Cost]) -> list[Cost]:
    """A prefill whose rows are rounded to 8 bits: whole-number products, whatever the weights are stored in."""
    return [replace(cost, arithmetic="int8") if cost.stage == PREFILL else cost for cost in passes]


def _choice(option: str, got: object, choices: Sequence[object]) -> None:
    if got not in choices:
        raise UsageError(f"{option} {got}: {choose(got, map(str, choices))}")


def _memory(spec: PolicySpec, decoder: int, dims: int, vision_bits: int, shared: bool) -> dict[str, float]:
    """Bytes on the device by part. With shared memory the embedding table, mapped from its file, counts too."""
    table = key_table(spec)
    vision = sum(math.prod(table[name].shape) for name in vision_keys(spec)) * vision_bits / 8
    rows = PROMPT + spec.patches + dims
    parts = {
        "towers and projector": vision,
        "decoder": float(decoder),
        "head and action embeddings": 2.0 * SIXTEEN * spec.action.bins * spec.decoder.width,
        "keys and values": 2.0 * SIXTEEN * spec.decoder.layers * spec.decoder.kv_width * rows,
    }
    return {**parts, "embedding table": float(SIXTEEN * math.prod(table[EMBEDDINGS].shape))} if shared else parts
