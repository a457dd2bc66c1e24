"""Memory and time of a policy on a device that is not at hand: `edge-vla plan`. On paper, nothing is measured.

Bytes and operations come from `limits`. A device is its data sheet; the share of it that a stage can expect to reach is
what published engines reached, none of them this one. Knows nothing of artifacts, processes or this machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from edge_vla.checkpoint import key_table
from edge_vla.checkpoint.keys import EMBEDDINGS, vision_keys
from edge_vla.device import limits
from edge_vla.device.limits import Ceilings
from edge_vla.errors import UsageError
from edge_vla.spec import PolicySpec

BITS: Final = (16, 8, 4)
VISION_BITS: Final = (16, 8)
PROMPT: Final = 32  # tokens of a usual instruction in its prompt
SIXTEEN: Final = 2  # bytes
# Activations, the runtime's own buffers and a CUDA context.
OVERHEAD: Final = (0.2e9, 0.8e9)
FREE: Final = 0.9  # share of a device's memory that one program may count on


@dataclass(frozen=True)
class Device:
    """Dense peaks of a data sheet. `shared`: the CPU's memory and the GPU's are one."""

    name: str
    memory: float
    read_bytes_per_s: float
    bf16_flops: float
    shared: bool
    source: str

    def ceilings(self) -> Ceilings:
        return Ceilings(self.read_bytes_per_s, {"bf16": self.bf16_flops}, self.source)


DEVICES: Final[Mapping[str, Device]] = {
    "orin-64": Device("Jetson AGX Orin 64 GB", 64e9, 204.8e9, 42.5e12, True, "technical brief, GPU alone, dense"),
    "orin-nano-super": Device("Jetson Orin Nano 8 GB, Super", 8e9, 102.4e9, 16.7e12, True, "data sheet"),
    "thor": Device("Jetson AGX Thor", 128e9, 273e9, 259e12, True, "data sheet"),
    "rtx3090": Device("GeForce RTX 3090", 24e9, 936e9, 71.2e12, False, "data sheet, sums in float32"),
    "rtx4090": Device("GeForce RTX 4090", 24e9, 1008e9, 165.2e12, False, "data sheet, sums in float32"),
    "rtx5090": Device("GeForce RTX 5090", 32e9, 1792e9, 209.5e12, False, "data sheet, sums in float32"),
    "h100": Device("H100 SXM", 80e9, 3350e9, 989e12, False, "data sheet"),
    "h200": Device("H200", 141e9, 4300e9, 790e12, False, "a copy and a product, as measured elsewhere"),
}

# Lowest and highest share of these peaks that published engines reached (TinyChat, exllamav2, gpt-fast, MLC,
# realtime-vla).
REACHED: Final[Mapping[str, tuple[float, float]]] = {
    "vision": (0.50, 0.70),
    "prefill": (0.50, 0.70),
    "decode": (0.66, 0.88),
}


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
    source: str  # of the device's figures
    bits: int
    vision_bits: int
    memory_bytes: dict[str, float]
    memory_low_bytes: float
    memory_high_bytes: float
    memory_usable_bytes: float
    fits: Literal["yes", "no", "barely"]
    stages: list[PlannedStage]
    action: PlannedStage
    reached: dict[str, tuple[float, float]]


def plan(spec: PolicySpec, device: str, bits: int, dims: int, vision_bits: int = 16) -> DevicePlan:
    """Memory by part with a verdict, and each stage's limit with the range to expect. Raises UsageError."""
    if device not in DEVICES:
        raise UsageError(f"--device {device}: choose one of {', '.join(DEVICES)}")
    if bits not in BITS:
        raise UsageError(f"--bits {bits}: choose 16, 8 or 4")
    if vision_bits not in VISION_BITS:
        raise UsageError(f"--vision-bits {vision_bits}: choose 16 or 8")
    chip, decoder = DEVICES[device], limits.uniform(spec, bits)
    parts = _memory(spec, decoder, dims, vision_bits, chip.shared)
    low, high = (sum(parts.values()) + extra for extra in OVERHEAD)
    usable = FREE * chip.memory
    passes = limits.costs(spec, decoder, PROMPT, dims, vision_bits=vision_bits)
    stages = [
        PlannedStage(row.name, row.limit_ms, row.limit_ms / REACHED[row.name][1], row.limit_ms / REACHED[row.name][0])
        for row in limits.limits(chip.name, passes, chip.ceilings()).stages
        if row.name in REACHED
    ]
    return DevicePlan(
        device=chip.name,
        source=chip.source,
        bits=bits,
        vision_bits=vision_bits,
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
        reached=dict(REACHED),
    )


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
