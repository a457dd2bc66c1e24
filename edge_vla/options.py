"""Options that several commands share, or that take more words than a line. Knows types and help; imports no room."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Adapters = Annotated[
    list[Path] | None,
    typer.Option("--adapter", help="A peft adapter directory, merged in; repeat to merge several in order."),
]
MergeArithmetic = Annotated[
    str,
    typer.Option(help="fp32: add in float32, round once. upstream: as OpenVLA's script merged, bit for bit."),
]
UnnormKey = Annotated[str | None, typer.Option(help="Whose statistics turn tokens into robot units.")]
Vision = Annotated[str, typer.Option(help="auto, native, torch or onnx.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Kernel = Annotated[str, typer.Option(help="auto, or by name, which then runs or raises: docs/cpu.md, docs/gpu.md.")]
Floors = Annotated[
    list[str] | None,
    typer.Option(
        help="Harmless changes of the reference, repeat: rounding shaken (default), float32, math attention, "
        "batch of 8, run again."
    ),
]
Peers = Annotated[
    list[str] | None,
    typer.Option(
        help="hf-bf16, hf-sdpa, bnb-nf4, bnb-int8 or gptqmodel, or NAME=PYTHON of its own environment; repeat."
    ),
]
