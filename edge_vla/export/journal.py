"""What an export has finished, a synced line a unit, so that one that was killed goes on where it stopped.

The first line is the key: everything that decides the bytes. Another key is another export and is refused, never
mixed. Each further line names a unit, its files with their hashes, and what the rest needs to know of it. A line that
is torn, or whose files are not as it says, was not finished, nor was any after it. The journal stands under
`evidence/`, outside the hashes, and stays in the artifact as a record of how it was made.
What decides the bytes of a calibrated export are also the number of threads and the instructions of the processor,
because sums depend on how they are split: both are in its key, so a resume with others is refused by name, and
bit-identity is promised for one thread count on one kind of processor.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from edge_vla.errors import ResourceError, UsageError
from edge_vla.files import sha256_of, sync

JOURNAL: Final = "evidence/journal.jsonl"
VERSION: Final = 1

Files = Mapping[str, Mapping[str, Any]]  # name -> size, sha256


class Journal:
    """Of the export into `folder`. `done` maps finished units to what they left to know, in their order."""

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self.path = folder / JOURNAL
        self.key = {"journal": VERSION, **key}
        self.files: dict[str, dict[str, Any]] = {}
        self.scratch: dict[str, dict[str, Any]] = {}
        self.done: dict[str, Any] = {}
        lines = self._read()
        if lines is not None and lines[:1] != [self.key]:
            raise UsageError(_difference(lines[0] if lines else {}, self.key, folder))
        kept = [json.dumps(self.key)]
        for line in self._sound(folder, lines[1:] if lines else []):
            self._enter(line)
            kept.append(json.dumps(line))
        try:
            self.path.parent.mkdir(exist_ok=True)
            beside = self.path.with_suffix(".partial")
            beside.write_text("\n".join(kept) + "\n", encoding="utf-8")
            sync(beside)
            beside.replace(self.path)
            sync(self.path.parent)
        except OSError as error:
            raise ResourceError(f"cannot write {self.path}: {error.strerror}") from error

    def finish(self, unit: str, files: Files, scratch: Files, data: Any) -> None:
        """The unit is done: its files are synced, and now so is this line."""
        line = {"unit": unit, "files": files, "scratch": scratch, "data": data}
        try:
            with self.path.open("ab") as file:
                file.write((json.dumps(line) + "\n").encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ResourceError(f"cannot write {self.path}: {error.strerror}") from error
        self._enter(line)

    def known(self) -> set[str]:
        """Every path that belongs to the export, relative to its folder."""
        return {JOURNAL, *self.files, *self.scratch}

    def _enter(self, line: Mapping[str, Any]) -> None:
        self.files |= line["files"]
        self.scratch |= line["scratch"]
        self.done[line["unit"]] = line["data"]

    def _read(self) -> list[dict[str, Any]] | None:
        """The lines up to the first torn one; None without a journal."""
        if not self.path.is_file():
            return None
        lines = []
        for text in self.path.read_bytes().splitlines(keepends=True):
            try:
                line = json.loads(text)
            except ValueError:
                break
            if not text.endswith(b"\n") or not isinstance(line, dict):
                break
            lines.append(line)
        return lines or None  # an export that was killed before its first line has no journal

    def _sound(self, folder: Path, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The lines up to the first whose files are not as it says. Scratch files may be gone: they are used up."""
        sound = []
        for line in lines:
            if set(line) != {"unit", "files", "scratch", "data"}:
                break
            scratch = {name: entry for name, entry in line["scratch"].items() if (folder / name).exists()}
            if not all(matches(folder / name, entry) for name, entry in {**line["files"], **scratch}.items()):
                break
            sound.append(line)
        return sound


def describe(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}


def matches(path: Path, entry: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == entry["size"] and sha256_of(path) == entry["sha256"]


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any], folder: Path) -> str:
    changed = sorted(name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name))
    what = "; ".join(f"{name} was {_short(theirs.get(name))}, now {_short(ours.get(name))}" for name in changed)
    begun = f" (OMP_NUM_THREADS={theirs['threads']})" if changed == ["threads"] else ""
    return (
        f"{folder} holds an unfinished export of another kind ({what}): finish it as it was begun{begun}, or remove it"
    )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
