"""Writing an artifact: every file synced and hashed, the manifest last, the final name only when all is there.

One export at a time may write a given name; a second one is refused. What a killed export finished is taken over if
its journal shows that it was this very export, and refused otherwise. Knows nothing of what the tensors mean.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from edge_vla.artifact import MANIFEST, Artifact, Manifest
from edge_vla.errors import EdgeVLAError, ResourceError, UsageError
from edge_vla.export.journal import JOURNAL, ExportKey, Journal
from edge_vla.export.units import Unit
from edge_vla.files import FileRecord, disk_errors, sync, write_whole

SCRATCH: Final = "scratch"
U = TypeVar("U", bound=Unit)


class ArtifactWriter:
    """Builds an artifact in `OUT.partial` and gives it its name only when it is complete.

    Units that a killed export with the same `key` finished count as done. UsageError if `out` exists, if another
    export is writing it, or if `OUT.partial` has another key; ResourceError where nothing can be written.
    """

    def __init__(self, out: Path, key: ExportKey) -> None:
        if os.path.lexists(out):
            raise UsageError(f"--out {out} exists already: remove it or choose another name")
        self.out = out
        self.partial = out.with_name(out.name + ".partial")
        self._new: dict[str, FileRecord] = {}  # since the last unit
        self._new_scratch: dict[str, FileRecord] = {}
        self._evidence = {JOURNAL}
        self._lock: int | None = None
        resumed = True
        try:
            with disk_errors(f"write {self.partial}"):
                self.partial.mkdir(parents=True, exist_ok=True)
                self._take_lock()
                resumed = (self.partial / JOURNAL).is_file()
                self.journal = Journal(self.partial, key)
                _discard_all_but(self.journal.known(), self.partial)
                for folder in ("decoder", SCRATCH):
                    (self.partial / folder).mkdir(exist_ok=True)
        except EdgeVLAError:
            if not resumed:
                shutil.rmtree(self.partial, ignore_errors=True)
            self.release()
            raise
        self.files = dict(self.journal.files)

    def get(self, kind: type[U], layer: int | None = None) -> U | None:
        """A finished unit; None if it is not finished."""
        return self.journal.get(kind, layer)

    @property
    def resumable(self) -> bool:
        """Whether any unit is finished."""
        return bool(self.journal.units)

    def unfinished(self, kind: type[Unit], layers: Sequence[int]) -> list[int]:
        """Those of `layers` whose unit is not finished."""
        return [layer for layer in layers if self.get(kind, layer) is None]

    def finish(self, unit: U) -> U:
        """Journal a unit, to which all files since the last one belong."""
        with disk_errors(f"write {self.partial}"):
            self._sync_folders({*self._new, *self._new_scratch})
        self.journal.finish(unit, self._new, self._new_scratch)
        self._new, self._new_scratch = {}, {}
        return unit

    def save(self, name: str, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
        """Write one safetensors file, synced and hashed."""
        path = self.partial / name
        self._save(path, tensors, metadata)
        self.adopt(name)
        return path

    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors that only the export itself needs; they are dropped before it is published."""
        path = self.partial / SCRATCH / name
        self._save(path, tensors)
        with disk_errors(f"write {path}"):
            sync(path)
            self._new_scratch[f"{SCRATCH}/{name}"] = FileRecord.of(path)

    def kept(self, name: str) -> dict[str, Tensor]:
        """Read back what was kept; private copies, not a mapped file."""
        path = self.partial / SCRATCH / name
        try:
            return {key: tensor.clone() for key, tensor in load_file(path).items()}
        except (SafetensorError, OSError) as error:
            raise ResourceError(f"{path} cannot be read ({error}): remove {self.partial} and export again") from error

    def drop(self, name: str) -> None:
        """Remove what was kept; call it when the unit that used it is finished."""
        path = self.partial / SCRATCH / name
        with disk_errors(f"remove {path}"):
            path.unlink(missing_ok=True)

    def write(self, name: str, content: bytes) -> None:
        """Write one file, synced and hashed."""
        path = self.partial / name
        with disk_errors(f"write {path}"):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        self.adopt(name)

    def write_evidence(self, name: str, text: str) -> None:
        """A record of how it was made: outside the hashes, written again by every export that resumes."""
        write_whole(self.partial / name, text + "\n")
        self._evidence.add(name)

    def adopt(self, name: str) -> None:
        """Sync and hash a file that is in the partial directory already."""
        path = self.partial / name
        with disk_errors(f"write {path}"):
            sync(path)
            self.files[name] = self._new[name] = FileRecord.of(path)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Read back a file that was saved."""
        tensors: dict[str, Tensor] = load_file(self.partial / name)
        return tensors

    def draft(self, manifest: Manifest) -> Artifact:
        """The artifact as far as it is, under its partial name, so that it can be run before it is published."""
        final = dataclasses.replace(manifest, files=self.files)
        text = json.dumps(final.to_json(), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
        write_whole(self.partial / MANIFEST, text)
        return Artifact(self.partial)

    def publish(self, without: Collection[str] = ()) -> None:
        """Drop scratch files and those in `without`, sync, and give the directory its name."""
        published = {*self.files, *self._evidence, MANIFEST} - set(without)
        with disk_errors(f"publish {self.out}"):
            _discard_all_but(published, self.partial)
            self._sync_folders(published)
            self.partial.rename(self.out)
            sync(self.out.absolute().parent)
        self.release()

    def abandon(self) -> None:
        """Leave nothing."""
        shutil.rmtree(self.partial, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Let go of the lock; without `publish`, an export with the same key can resume."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> None:
        self._lock = os.open(self.partial, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"another export is writing {self.out}: wait for it, or choose another name") from error

    def _save(self, path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
        try:
            save_file({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, path, metadata)
            path.chmod(self.partial.stat().st_mode & 0o666)  # safetensors makes it private; the umask's mode is wanted
        except (SafetensorError, OSError) as error:
            raise ResourceError(f"cannot write {path} ({error}): is the disk full?") from error

    def _sync_folders(self, names: Iterable[str]) -> None:
        for folder in sorted({(self.partial / name).parent for name in names} | {self.partial}):
            sync(folder)


def _discard_all_but(names: set[str], folder: Path) -> None:
    """Remove every file below `folder` that is not named, and folders that become empty."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what is inside comes before its folder
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif str(path.relative_to(folder)) not in names:
            path.unlink()
