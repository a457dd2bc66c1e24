"""Writing an artifact: every file synced and hashed, the manifest last, the final name only when all is there.

One export at a time may write a given name; a second one is told so. What a killed export finished is taken over if
its journal says that it was this very export, else discarded. Knows nothing of what the tensors mean.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from edge_vla.artifact import EVIDENCE, MANIFEST, Artifact, Manifest
from edge_vla.errors import ResourceError, UsageError
from edge_vla.export.journal import JOURNAL, Journal, describe
from edge_vla.files import sync, write_whole
from edge_vla.quant import PackedWeight

SCRATCH: Final = "scratch"


class ArtifactWriter:
    """Builds an artifact in `OUT.partial` and gives it its name only when it is complete.

    `key` is everything that decides the bytes. With it units are journalled, and `done` holds those that an
    earlier, killed export with the same key had finished. UsageError if what lies there has another key.
    """

    def __init__(self, out: Path, key: Mapping[str, Any] | None = None) -> None:
        if os.path.lexists(out):
            raise UsageError(f"--out {out} exists already: remove it or choose another name")
        self.out = out
        self.partial = out.with_name(out.name + ".partial")
        self.files: dict[str, dict[str, Any]] = {}
        self._fresh: dict[str, dict[str, Any]] = {}  # since the last unit
        self._scratch: dict[str, dict[str, Any]] = {}
        begun = False
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.partial, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if key is None:
                _discard(self.partial, set())
            begun = (self.partial / JOURNAL).is_file()
            self.journal = Journal(self.partial, key or {})
            _discard(self.partial, self.journal.known())
            self.files |= self.journal.files
            for folder in ("decoder", SCRATCH):
                (self.partial / folder).mkdir(exist_ok=True)
        except BlockingIOError as error:
            os.close(self._lock)
            raise UsageError(f"another export is writing {out}: wait for it, or choose another name") from error
        except UsageError:
            os.close(self._lock)
            raise
        except (OSError, ResourceError) as error:
            if not begun:
                shutil.rmtree(self.partial, ignore_errors=True)
            if isinstance(error, ResourceError):
                raise
            raise ResourceError(f"cannot write {self.partial}: {error.strerror}") from error

    @property
    def done(self) -> Mapping[str, Any]:
        return self.journal.done

    def finish(self, unit: str, data: Any = None) -> None:
        """Journal a unit: all files since the last one are its own."""
        try:
            self._sync_folders({*self._fresh, *self._scratch})
        except OSError as error:
            raise ResourceError(f"cannot write {self.partial}: {error.strerror}") from error
        self.journal.finish(unit, self._fresh, self._scratch, data)
        self._fresh, self._scratch = {}, {}

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> Path:
        """Write one safetensors file, synced and hashed."""
        path = self.partial / name
        contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
        try:
            save_file(contiguous, path)
            path.chmod(self.partial.stat().st_mode & 0o666)  # it makes them private; readable is what the umask allows
        except (SafetensorError, OSError) as error:
            raise ResourceError(f"cannot write {path} ({error}): is the disk full?") from error
        self.adopt(name)
        return path

    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors that only the export itself needs, to be dropped before it is published."""
        path = self.partial / SCRATCH / name
        try:
            save_file({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, path)
            sync(path)
            self._scratch[f"{SCRATCH}/{name}"] = describe(path)
        except (SafetensorError, OSError) as error:
            raise ResourceError(f"cannot write {path} ({error}): is the disk full?") from error

    def kept(self, name: str) -> dict[str, Tensor]:
        """Read back what was kept; private copies, not a mapped file."""
        path = self.partial / SCRATCH / name
        try:
            return {key: tensor.clone() for key, tensor in load_file(path).items()}
        except (SafetensorError, OSError) as error:
            raise ResourceError(f"{path} cannot be read ({error}): remove {self.partial} and export again") from error

    def drop(self, *names: str) -> None:
        """Kept files that no later unit reads; call it when the unit that used them is finished."""
        for name in names:
            path = self.partial / SCRATCH / name
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise ResourceError(f"cannot remove {path}: {error.strerror}") from error

    def write(self, name: str, content: bytes) -> Path:
        path = self.partial / name
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            raise ResourceError(f"cannot write {path}: {error.strerror}") from error
        self.adopt(name)
        return path

    def evidence(self, name: str, text: str) -> None:
        """A record of how it was made: outside the hashes, written again by every export that goes on."""
        write_whole(self.partial / EVIDENCE / name, text + "\n")

    def adopt(self, name: str) -> None:
        """Sync and hash a file that stands in the partial directory already."""
        path = self.partial / name
        try:
            sync(path)
            self.files[name] = self._fresh[name] = describe(path)
        except OSError as error:
            raise ResourceError(f"cannot write {path}: {error.strerror}") from error

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

    def publish(self, manifest: Manifest) -> Artifact:
        """Write the manifest last, then rename."""
        self.draft(manifest)
        try:
            shutil.rmtree(self.partial / SCRATCH)
            self._sync_folders({*self.files, JOURNAL})
            self.partial.rename(self.out)
            sync(self.out.absolute().parent)
        except OSError as error:
            raise ResourceError(f"cannot publish {self.out}: {error.strerror}") from error
        os.close(self._lock)
        return Artifact(self.out)

    def abandon(self) -> None:
        """Leave nothing."""
        shutil.rmtree(self.partial, ignore_errors=True)
        os.close(self._lock)

    def pause(self) -> None:
        """Leave what is finished for an export with the same key to go on with."""
        os.close(self._lock)

    def _sync_folders(self, names: Iterable[str]) -> None:
        for folder in sorted({(self.partial / name).parent for name in names} | {self.partial}):
            sync(folder)


def _discard(folder: Path, known: set[str]) -> None:
    """Remove every file below `folder` that is not known, and folders that are left empty."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what is inside comes before its folder
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif str(path.relative_to(folder)) not in known:
            path.unlink()


def pack_linear(name: str, packed: PackedWeight) -> dict[str, Tensor]:
    """The tensors under which a linear is stored: `NAME.weight`, and `NAME.scales` and `NAME.zeros` if it has them."""
    stored = {"weight": packed.codes, "scales": packed.scales, "zeros": packed.zeros}
    return {f"{name}.{part}": tensor for part, tensor in stored.items() if tensor is not None}
