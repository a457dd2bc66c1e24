"""What an export has finished, a synced line for each unit, so that a killed export resumes with the same bits.

The first line is the key: everything that decides the bytes. A journal with another key belongs to another export and
is refused, never mixed. Each further line holds a unit and its files with their hashes. A line that is torn, or whose
files have changed, was not finished, nor was any line after it. The journal lies in `evidence/`, outside the hashes,
and stays in the artifact as a record of how it was made.
Sums depend on how they are split, so the key of a calibrated export also holds the number of threads and the
processor's instruction set: identical bits are promised for one thread count on one kind of processor.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from edge_vla import typed_json
from edge_vla.artifact import Source
from edge_vla.errors import UsageError
from edge_vla.export.recipe import Recipe
from edge_vla.export.units import KINDS, Unit
from edge_vla.files import FileRecord, disk_errors, write_whole

JOURNAL: Final = "evidence/journal.jsonl"
VERSION: Final = 2
U = TypeVar("U", bound=Unit)


@dataclass(frozen=True, kw_only=True)
class ExportKey:
    """Everything that decides the bytes of an export."""

    source: Source
    settings: str  # sha256 of the source's prompt, statistics, tokenizer and dimensions, as they were chosen
    recipe: Recipe
    calibration: str | None  # sha256 of the calibration set
    golden: str  # sha256 of the candidates for the golden frame
    form: str  # `artifact`, or another program's format
    edge_vla: str
    torch: str
    threads: int | None = None  # None unless calibrated, and so is `cpu`
    cpu: str | None = None
    journal: int = VERSION


@dataclass(frozen=True)
class Line:
    """A unit as it is written down."""

    unit: str
    data: Any
    files: dict[str, FileRecord]
    scratch: dict[str, FileRecord]  # needed by later units only, so they may be gone

    def holds(self, folder: Path) -> bool:
        """Whether every file is as it was when the unit was finished."""
        there = {name: record for name, record in self.scratch.items() if (folder / name).exists()}
        return all(record.matches(folder / name) for name, record in {**self.files, **there}.items())


class Journal:
    """The journal in `folder`, from which everything after the first unfinished line is dropped.

    UsageError if it has another key.
    """

    def __init__(self, folder: Path, key: ExportKey) -> None:
        self.path = folder / JOURNAL
        self.files: dict[str, FileRecord] = {}
        self.scratch: dict[str, FileRecord] = {}
        self.units: dict[tuple[type[Unit], int | None], Unit] = {}
        ours = json.loads(json.dumps(asdict(key)))
        header, *lines = self._read() or [ours]
        _check_key(header, ours, folder)
        kept = [header]
        for raw in lines:
            try:
                line = typed_json.from_json(Line, raw)
                unit = typed_json.from_json(KINDS[line.unit], line.data)
            except (ValueError, KeyError):
                break
            if not line.holds(folder):
                break
            self._enter(line, unit)
            kept.append(raw)
        with disk_errors(f"write {self.path}"):
            self.path.parent.mkdir(exist_ok=True)
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def get(self, kind: type[U], layer: int | None = None) -> U | None:
        """The finished unit; None if it is not finished."""
        unit = self.units.get((kind, layer))
        assert unit is None or isinstance(unit, kind), "units are kept by their kind"
        return unit

    def finish(self, unit: Unit, files: Mapping[str, FileRecord], scratch: Mapping[str, FileRecord]) -> None:
        """Enter a unit whose files are synced. ResourceError if the disk is full."""
        line = Line(type(unit).__name__, asdict(unit), dict(files), dict(scratch))
        with disk_errors(f"write {self.path}"), self.path.open("ab") as file:
            file.write((json.dumps(asdict(line)) + "\n").encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        self._enter(line, unit)

    def known(self) -> set[str]:
        """Every path that belongs to the export, relative to its folder."""
        return {JOURNAL, *self.files, *self.scratch}

    def _enter(self, line: Line, unit: Unit) -> None:
        self.files |= line.files
        self.scratch |= line.scratch
        self.units[type(unit), unit.layer] = unit

    def _read(self) -> list[Any]:
        """The lines up to the first torn one; none without a journal, or if it was killed before its first line."""
        lines = []
        for text in self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else ():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
            if not text.endswith(b"\n"):
                lines.pop()
                break
        return lines


def _check_key(theirs: Any, ours: Mapping[str, Any], folder: Path) -> None:
    version = theirs.get("journal") if isinstance(theirs, dict) else None
    if version != VERSION:
        raise UsageError(
            f"{folder} holds an export begun by another edge-vla: journal version {version!r}, expected {VERSION}. "
            "Finish it with the edge-vla that began it, or remove it"
        )
    if changed := _changes(theirs, ours):
        threads = f" (OMP_NUM_THREADS={theirs['threads']})" if list(changed) == ["threads"] else ""
        raise UsageError(
            f"{folder} holds an unfinished export of another kind ({'; '.join(changed.values())}): finish it as it "
            f"was begun{threads}, or remove it"
        )


def _changes(theirs: Mapping[str, Any], ours: Mapping[str, Any], inside: str = "") -> dict[str, str]:
    """What differs, in words, by dotted name."""
    found: dict[str, str] = {}
    for name in sorted({*theirs, *ours}):
        was, now, path = theirs.get(name), ours.get(name), f"{inside}{name}"
        if isinstance(was, dict) and isinstance(now, dict):
            found |= _changes(was, now, f"{path}.")
        elif was != now:
            found[path] = f"{path} was {json.dumps(was):.60}, now {json.dumps(now):.60}"
    return found
