"""An artifact's kernels on disk: a folder for a chip and a version of the kernels, and a record of every byte in it.

A kernel is a program: it is read only from the user's own cache, whole, for this chip, this Triton and these sources.
Knows files. Imports neither Triton nor torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from edge_vla import typed_json
from edge_vla.errors import ArtifactError, BackendError
from edge_vla.files import FileRecord, write_whole
from edge_vla.runtime.gpu.ahead.triton_cache import Kernel

FORMAT: Final = 1
DIGITS: Final = 16
RECORD: Final = "kernels.json"
SOURCES: Final = Path(__file__).resolve().parents[1] / "kernels"


@dataclass(frozen=True)
class KernelsIdentity:
    """All that compiled kernels depend on, beside their constants and types. Another value: other kernels."""

    chip: str  # such as sm_87
    multiprocessors: int
    triton: str
    sources: str  # SHA-256 of this package's kernels
    format: int = FORMAT

    @property
    def name(self) -> str:
        words = json.dumps(asdict(self), sort_keys=True)
        return f"kernels-{self.chip}-{hashlib.sha256(words.encode()).hexdigest()[:DIGITS]}"

    def differs(self, other: KernelsIdentity) -> str:
        """In words: what the other one is that this one is not."""
        words = {
            "chip": other.chip,
            "multiprocessors": f"{other.multiprocessors} multiprocessors",
            "triton": f"Triton {other.triton}",
            "sources": "another edge-vla's kernels",
            "format": "another edge-vla",
        }
        mine, theirs = asdict(self), asdict(other)
        return ", ".join(words[field] for field in mine if mine[field] != theirs[field])


@dataclass(frozen=True)
class KernelRecord:
    """One kernel's binary lies beside the record, under its key."""

    name: str
    source: str
    metadata: dict[str, Any]  # Triton's own words
    file: FileRecord


@dataclass(frozen=True)
class KernelsRecord:
    """`kernels` by key."""

    identity: KernelsIdentity
    kernels: dict[str, KernelRecord]


def sources() -> str:
    """SHA-256 of the kernels' files, by name."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.glob("*.py")):
        digest.update(f"{path.name}\n{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def write(folder: Path, identity: KernelsIdentity, kernels: Sequence[Kernel]) -> Path:
    """Beside those of the same identity that are there and whole; the record last."""
    into = folder / identity.name
    into.mkdir(mode=0o700, exist_ok=True)
    before = _read(into / RECORD)
    known = dict(before.kernels) if before is not None and before.identity == identity else {}
    known = {key: one for key, one in known.items() if one.file.matches(into / _file(key))}
    for one in kernels:
        write_whole(into / _file(one.key), one.binary)
        file = FileRecord(len(one.binary), hashlib.sha256(one.binary).hexdigest())
        known[one.key] = KernelRecord(one.name, one.source, dict(one.metadata), file)
    write_whole(into / RECORD, json.dumps(asdict(KernelsRecord(identity, known)), indent=1) + "\n")
    return into


def find(folder: Path, identity: KernelsIdentity, rebuild: str) -> list[Kernel]:
    """The checked kernels of this identity; none where none was built for this chip. `rebuild` is the command.

    BackendError where those for this chip are of another version, ArtifactError where a byte differs.
    """
    into = folder / identity.name
    record = _read(into / RECORD)
    if record is None:
        _refuse_others(folder, identity, rebuild)
        return []
    if record.identity != identity:
        raise ArtifactError(f"{into} holds kernels for {identity.differs(record.identity)}: {rebuild}")
    if (into / RECORD).stat().st_uid != os.getuid():
        raise ArtifactError(f"{into} belongs to another user, and a kernel is a program: {rebuild}")
    return [_checked(into, key, one, identity, rebuild) for key, one in record.kernels.items()]


def _refuse_others(folder: Path, identity: KernelsIdentity, rebuild: str) -> None:
    for path in sorted(folder.glob(f"kernels-*/{RECORD}")):
        other = _read(path)
        if other is None:
            raise ArtifactError(f"{path} is no record of kernels: {rebuild}, or delete {path.parent}")
        if other.identity.chip == identity.chip:
            raise BackendError(
                f"the kernels in {path.parent} are for {identity.differs(other.identity)}, this is "
                f"{other.identity.differs(identity)}: {rebuild}, or delete that folder and Triton compiles here"
            )


def _checked(into: Path, key: str, one: KernelRecord, identity: KernelsIdentity, rebuild: str) -> Kernel:
    path = into / _file(key)
    binary = path.read_bytes() if path.is_file() else b""
    digest = hashlib.sha256(binary).hexdigest()
    if (len(binary), digest) != (one.file.size, one.file.sha256):
        raise ArtifactError(
            f"{path}: {len(binary)} bytes, sha256 {digest[:12]}…, its record says {one.file.size} and "
            f"{one.file.sha256[:12]}…: it was changed: {rebuild}"
        )
    kernel = Kernel(one.name, one.source, one.metadata, binary)
    if kernel.key != key:
        raise ArtifactError(f"the record of {path} was changed: {rebuild}")
    target = f"sm_{one.metadata.get('target', {}).get('arch')}"
    if target != identity.chip:
        raise ArtifactError(f"{path} is for {target}, this is {identity.chip}: {rebuild}")
    return kernel


def _file(key: str) -> str:
    return f"{key[: 2 * DIGITS]}.cubin"


def _read(path: Path) -> KernelsRecord | None:
    """None for what is missing or no record; then there are no kernels."""
    try:
        return typed_json.from_json(KernelsRecord, json.loads(path.read_text(encoding="utf-8")), path.name)
    except (OSError, ValueError, KeyError, TypeError):
        return None
