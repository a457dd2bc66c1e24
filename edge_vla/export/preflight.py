"""Whether an export can finish: disk, memory and permission, asked before the first byte is written."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from edge_vla.calibration.answers import PROBES
from edge_vla.checkpoint import key_table
from edge_vla.checkpoint.keys import EMBEDDINGS, vision_keys
from edge_vla.errors import ResourceError
from edge_vla.quant import Scheme, stored_bytes
from edge_vla.spec import PolicySpec

SPARE: Final = 1.1  # asked for, over what will be used
HALF: Final = 2  # bytes of a 16-bit number
SINGLE: Final = 4
DOUBLE: Final = 8
MEMINFO: Final = Path("/proc/meminfo")
CGROUP: Final = Path("/sys/fs/cgroup")


def fixed_bytes(spec: PolicySpec, vision_bits: int) -> int:
    """Everything but the decoder's linears, as stored: towers, projector, embeddings, norms and action rows."""
    table, decoder = key_table(spec), spec.decoder
    vision = sum(math.prod(table[name].shape) for name in vision_keys(spec)) * vision_bits // 8
    norms = (2 * decoder.layers + 1) * decoder.width
    return vision + HALF * (math.prod(table[EMBEDDINGS].shape) + norms + spec.action.bins * decoder.width)


def linear_bytes(formats: Sequence[Mapping[str, tuple[Scheme, int | None]]], spec: PolicySpec) -> int:
    shapes = spec.decoder.linears()
    return sum(
        stored_bytes(scheme, shapes[name], group) for layer in formats for name, (scheme, group) in layer.items()
    )


def scratch_bytes(spec: PolicySpec, rows: int) -> int:
    """What calibrating on so many rows keeps on disk at its widest: each layer's input, gradients and row weights."""
    wide = rows * spec.decoder.width * HALF
    return wide * (spec.decoder.layers + 1 + 2 * PROBES) + rows * SINGLE * 4 * spec.decoder.layers


def calibration_memory(spec: PolicySpec, rows: int) -> int:
    """Peak of calibrating on so many rows: one layer twice, the widest Hessian and its factors, the rows."""
    decoder = spec.decoder
    layer = sum(math.prod(shape) for shape in decoder.linears().values()) * HALF
    widest = max(inner for _, inner in decoder.linears().values())
    weight = max(math.prod(shape) for shape in decoder.linears().values())
    hessian = widest**2 * (2 * SINGLE + 2 * DOUBLE) + 2 * weight * SINGLE
    return 2 * layer + hessian + rows * decoder.width * HALF * (2 + 2 * PROBES)


def check_disk(out: Path, need: int) -> None:
    """Raise ResourceError if `out` will not fit where it is to stand, or may not be written there."""
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < need * SPARE:
        raise ResourceError(f"{out} needs {need * SPARE / 1e9:.1f} GB, {parent} has {free / 1e9:.1f} GB free")
    if parent.is_dir() and not os.access(parent, os.W_OK | os.X_OK):
        raise ResourceError(f"cannot write {out}: Permission denied in {parent}")


def check_memory(what: str, need: int, remedy: str) -> None:
    """Raise ResourceError if this machine, or the container we are in, has less memory to give."""
    free = available_memory()
    if free is not None and free < need * SPARE:
        need_gib, free_gib = need * SPARE / 2**30, free / 2**30
        raise ResourceError(f"{what} needs {need_gib:.1f} GiB, {free_gib:.1f} GiB is free: {remedy}")


def available_memory() -> int | None:
    """Bytes that can be had without swapping: the system's, or what a control group leaves if that is less."""
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="ascii").splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None  # not Linux
    try:
        limit, used = ((CGROUP / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        return free if limit == "max" else min(free, int(limit) - int(used))
    except (OSError, ValueError):
        return free
