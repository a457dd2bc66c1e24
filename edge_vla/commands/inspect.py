"""`edge-vla verify` and `edge-vla inspect`: is an artifact whole, and what is in it?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from edge_vla.files import file_size
from edge_vla.options import Adapters, AsJson, Device, Kernel, PromptChoice, StatisticsFile, Vision
from edge_vla.terminal import err, out, say, show_reading

if TYPE_CHECKING:
    from edge_vla.inspection import Description


def verify(
    artifact: Annotated[Path, typer.Argument(help="An artifact directory.")],
    fast: Annotated[bool, typer.Option("--fast", help="Sizes and structure only: no hashing, no action.")] = False,
    device: Device = "auto",
    vision: Vision = "auto",
    kernel: Kernel = "auto",
) -> None:
    """Check an artifact: every file's hash, then that its golden frames still give their tokens here."""
    from edge_vla.artifact import Artifact
    from edge_vla.runtime import load, replay

    opened = Artifact(artifact)
    frames = opened.manifest.golden
    err.print(f"structure: {len(opened.manifest.files)} files, all of the right size")
    if not fast:
        with err.status("hashing"):
            opened.verify()
        err.print("hashes: all match the manifest")
        with err.status("replaying golden frames"):
            notes = replay(load(artifact, device, vision, kernel=kernel, check=False), artifact, frames)
        for note in notes:
            say("note", "yellow", note)
        if any(frame.steps is None for frame in frames):
            say(
                "note", "yellow", "golden frames are of tokens alone, made before 0.2: prompt and pixels went unchecked"
            )
        err.print(f"golden frames: {len(frames) - len(notes)} of {len(frames)} give the recorded tokens")
    print(f"ok {opened.identity}")


def inspect(
    path: Annotated[str, typer.Argument(help="An artifact, or a checkpoint.")],
    adapter: Adapters = None,
    prompt: PromptChoice = None,
    statistics: StatisticsFile = None,
    as_json: AsJson = False,
) -> None:
    """What a folder is, which of its files are read, ignored or merged, every doubt; parts, formats, bytes, data sets.

    A folder that cannot be opened is named too, and what to do with it; the exit code then is the error's.
    """
    from edge_vla.checkpoint import refuse
    from edge_vla.inspection import describe

    description = describe(path, adapter or (), prompt=prompt, statistics=statistics)
    reading = description.reading
    if as_json:
        print(json.dumps(description.to_json()))
    else:
        _show(description)
    if reading is not None:
        refuse(reading)


def _show(description: Description) -> None:
    if description.reading is not None:
        show_reading(description.reading, out)
    if not description.parts:
        return
    table = Table("part", "format", "tensors", "parameters", "bytes")
    for part in description.parts:
        table.add_row(part.part, part.format, str(part.tensors), f"{part.parameters:,}", f"{part.bytes:,}")
    out.print(table)
    for name, value in description.facts.items():
        out.print(f"{name}: {in_words(name, value)}")


def in_words(name: str, value: object) -> str:
    """A fact as people write it: no brackets, no quotes; bytes with their size in words."""
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {one}" for key, one in value.items() if one is not None)
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, int) and "bytes" in name:
        return f"{value:,} ({file_size(value)})"
    return str(value)
