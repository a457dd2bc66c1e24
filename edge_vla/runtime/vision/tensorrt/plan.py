"""Built engines on disk: one plan, and beside it a record of what it is and what its bytes hash to.

A plan is a program: it is read only from the user's own cache, whole, and by the library and GPU it was built for.
Knows files. Imports neither TensorRT nor torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from edge_vla import typed_json
from edge_vla.errors import ArtifactError, BackendError, ResourceError
from edge_vla.files import FileRecord, disk_errors, sha256_of, write_whole
from edge_vla.runtime.store import user_cache
from edge_vla.runtime.vision.precision import Precision

FORMAT: Final = 1  # of the record, and of what build.py adds to a graph
DIGITS: Final = 16


@dataclass(frozen=True)
class PlanIdentity:
    """All that a plan depends on. Another value of any field is another plan."""

    graph: str  # SHA-256 of the ONNX graph and the weights it points to
    precision: Precision
    library: str  # with its version, as `Library` prints itself
    gpu: str  # name and compute capability, or the target alone
    rows: str  # type of the image rows it writes
    format: int = FORMAT

    @property
    def name(self) -> str:
        words = json.dumps(asdict(self), sort_keys=True)
        return f"vision-{self.precision.value}-{hashlib.sha256(words.encode()).hexdigest()[:DIGITS]}.plan"

    def differs(self, other: PlanIdentity) -> str:
        """In words: what the other one is that this one is not."""
        mine, theirs = asdict(self), asdict(other)
        named = {"graph": "another graph", "format": "another edge-vla"}
        theirs["precision"] = other.precision.value
        words = [named.get(field, str(theirs[field])) for field in mine if mine[field] != theirs[field]]
        return ", ".join(words)


@dataclass(frozen=True)
class PlanRecord:
    """The sidecar of a plan."""

    identity: PlanIdentity
    file: FileRecord


def device_cache(artifact_identity: str) -> Path:
    """The folder of one artifact's graphs and engines on this device; made if missing. ResourceError if it cannot."""
    try:
        folder = user_cache() / "engines" / artifact_identity[:DIGITS]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"no folder for engines: {error}: set XDG_CACHE_HOME to one of your own") from error
    return folder


@contextmanager
def building(folder: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """One build of an artifact at a time; `on_wait` is called before waiting for another process's."""
    with disk_errors(f"lock {folder}"):
        file = folder.with_suffix(".lock").open("w")  # beside: the folder holds graphs and plans alone
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_plan(folder: Path, identity: PlanIdentity, plan: bytes | memoryview) -> Path:
    """The plan first, its record last: a plan without a record does not exist."""
    path = folder / identity.name
    record = _record(path)
    record.unlink(missing_ok=True)
    write_whole(path, plan)
    written = PlanRecord(identity, FileRecord(len(plan), hashlib.sha256(plan).hexdigest()))
    write_whole(record, json.dumps(asdict(written), indent=1) + "\n")
    return path


def find_plan(folder: Path, identity: PlanIdentity, rebuild: str) -> Path:
    """The checked plan of this identity. `rebuild` is the command that makes it.

    BackendError where there is none, naming the nearest; ArtifactError where it is not whole.
    """
    path = folder / identity.name
    record = _read(_record(path)) if path.is_file() else None
    if record is None:
        others = [one for one in _records(folder) if one.identity != identity]
        near = sorted(others, key=lambda one: len(identity.differs(one.identity)))
        got = f"the nearest engine is for {identity.differs(near[0].identity)}" if near else "none was built"
        raise BackendError(
            f"no {identity.precision.value} engine for {identity.library} on {identity.gpu}; {got}: {rebuild}"
        )
    size = path.stat().st_size
    if size != record.file.size:
        raise ArtifactError(f"{path} has {size} bytes, {record.file.size} were written: it is truncated: {rebuild}")
    if record.identity != identity:
        raise ArtifactError(f"the record of {path} is of an engine for {identity.differs(record.identity)}: {rebuild}")
    digest = sha256_of(path)
    if digest != record.file.sha256:
        raise ArtifactError(
            f"{path}: sha256 {digest[:12]}…, its record says {record.file.sha256[:12]}…: it was changed: {rebuild}"
        )
    if path.stat().st_uid != os.getuid():
        raise ArtifactError(f"{path} belongs to another user, and an engine is a program: {rebuild}")
    return path


def _record(plan: Path) -> Path:
    return plan.with_suffix(".json")


def _records(folder: Path) -> Iterator[PlanRecord]:
    for path in sorted(folder.glob("vision-*.json")):
        if (record := _read(path)) is not None:
            yield record


def _read(path: Path) -> PlanRecord | None:
    """None for what is missing or no record; then there is no plan."""
    try:
        return typed_json.from_json(PlanRecord, json.loads(path.read_text(encoding="utf-8")), path.name)
    except (OSError, ValueError, KeyError, TypeError):
        return None
