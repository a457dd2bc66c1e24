"""`edge-vla plan`: on paper, would OpenVLA-7B fit on a device, and how fast could it be?"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from edge_vla.device.devices import DEVICES
from edge_vla.options import AsJson
from edge_vla.spec import OPENVLA_7B, OPENVLA_DIMS
from edge_vla.terminal import out


def plan(
    device: Annotated[str, typer.Option(help=f"{', '.join(DEVICES)}.")],
    bits: Annotated[int, typer.Option(help="16, 8 or 4.")] = 4,
    vision_bits: Annotated[int, typer.Option(help="Bits of towers and projector: 16 or 8.")] = 16,
    activations: Annotated[int, typer.Option(help="Bits of what a prefill multiplies: 16, or 8.")] = 16,
    as_json: AsJson = False,
) -> None:
    """On paper: would OpenVLA-7B fit on a device, and how fast could it be there? Nothing is run."""
    from edge_vla.device.planner import plan as planned

    found = planned(OPENVLA_7B, device, bits, OPENVLA_DIMS, vision_bits, activations)
    if as_json:
        print(json.dumps(asdict(found)))
        return
    memory = Table("memory", "GB")
    for part, size in found.memory_bytes.items():
        memory.add_row(part, f"{size / 1e9:.2f}")
    memory.add_row(
        "with buffers and context", f"{found.memory_low_bytes / 1e9:.1f} to {found.memory_high_bytes / 1e9:.1f}"
    )
    times = Table("stage", "limit, ms", "at the share other engines reach, ms")
    for stage in (*found.stages, found.action):
        times.add_row(stage.name, f"{stage.limit_ms:.1f}", f"{stage.low_ms:.0f} to {stage.high_ms:.0f}")
    out.print(memory, times)
    out.print(f"fits in {found.memory_usable_bytes / 1e9:.1f} usable GB of {found.device}: {found.fits}")
    low, high = 1e3 / found.action.high_ms, 1e3 / found.action.low_ms
    out.print(f"{low:.1f} to {high:.1f} Hz, on paper; not measured")
    for what, source in found.sources.items():
        out.print(f"{what}: {source}", style="dim")
