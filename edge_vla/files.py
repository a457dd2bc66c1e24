"""Files that must be whole: hashing, syncing, and writing under the final name only when complete.

`PACKAGE` is where this package lies, for child processes that must find the same one.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

from edge_vla.errors import ResourceError

PACKAGE: Final = Path(__file__).resolve().parent


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Force a file's content, or a directory's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write beside, sync, rename: a reader sees the old file or the new one, never half of it."""
    beside = path.with_name(f".{path.name}.partial")
    try:
        beside.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        sync(beside)
        beside.replace(path)
        sync(path.parent)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ResourceError(f"cannot write {path}: {error.strerror}") from error
