"""Files that must be whole: hash them, sync them, and give them their final name only when they are complete."""

from __future__ import annotations

import hashlib
import os
import re
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


def write_whole(path: Path, content: str | bytes | memoryview) -> None:
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


def stand_in(path: Path) -> str | None:
    """What stands in place of a file's content, and how to get it; None if the file may be what its name says.

    Seen: pointers of git-lfs and git-annex, and a server's error page that was saved under the file's name.
    """
    try:
        with path.open("rb") as file:
            start = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n")
    except OSError:
        return None
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        size = re.search(rb"^size (\d+)$", start, re.M)
        what = f"a git-lfs pointer to {file_size(int(size[1]))}" if size else "a git-lfs pointer"
        return f"{what}, not the file itself: run `git lfs pull` in its folder"
    if b"/annex/objects/" in start.partition(b"\n")[0]:
        return "a git-annex pointer, not the file itself: run `git annex get` in its folder"
    if start[:14].lower().startswith((b"<!doctype html", b"<html", b"<?xml", b"<error>")):
        return "a web page (an error or a login?) saved under this name: download it again, logged in"
    return None


def file_size(count: int) -> str:
    """4900000000 -> 4.90 GB; 1e9 bytes are a GB."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"
