"""Files that must be whole: hash them, sync them, and give them their final name only when they are complete."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_vla.errors import ResourceError

PACKAGE: Final = Path(__file__).resolve().parent  # child processes must import the same one


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class FileRecord:
    """What a file must be: its size in bytes and its SHA-256."""

    size: int
    sha256: str

    @staticmethod
    def of(path: Path) -> FileRecord:
        return FileRecord(path.stat().st_size, sha256_of(path))

    def matches(self, path: Path) -> bool:
        return path.is_file() and path.stat().st_size == self.size and sha256_of(path) == self.sha256


def sync(path: Path) -> None:
    """Force a file's content, or a directory's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(action: str) -> Iterator[None]:
    """Turn an OSError into a ResourceError: `cannot write out/manifest.json: No space left on device`."""
    try:
        yield
    except OSError as error:
        raise ResourceError(f"cannot {action}: {error.strerror}") from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Write beside, sync, rename: a reader sees the old file or the new one, never half of it."""
    beside = path.with_name(f".{path.name}.partial")
    try:
        with disk_errors(f"write {path}"):
            beside.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
            sync(beside)
            beside.replace(path)
            sync(path.parent)
    except ResourceError:
        beside.unlink(missing_ok=True)
        raise
