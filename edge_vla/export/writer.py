"""Writing an artifact: every file synced and hashed, the manifest last, the final name only when all is there.

One export at a time may write a given name; a second one is told so. Knows nothing of what the tensors mean.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from edge_vla.artifact import MANIFEST, Artifact, Manifest
from edge_vla.errors import ResourceError, UsageError
from edge_vla.files import sha256_of, sync, write_whole
from edge_vla.quant import PackedWeight


class ArtifactWriter:
    """Builds an artifact in `OUT.partial` and gives it its name only when it is complete."""

    def __init__(self, out: Path) -> None:
        if os.path.lexists(out):
            raise UsageError(f"--out {out} exists already: remove it or choose another name")
        self.out = out
        self.partial = out.with_name(out.name + ".partial")
        self.files: dict[str, dict[str, Any]] = {}
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.partial, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in self.partial.iterdir():  # by an export that was killed
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            (self.partial / "decoder").mkdir()
        except BlockingIOError as error:
            os.close(self._lock)
            raise UsageError(f"another export is writing {out}: wait for it, or choose another name") from error
        except OSError as error:
            raise ResourceError(f"cannot write {self.partial}: {error.strerror}") from error

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

    def write(self, name: str, content: bytes) -> Path:
        path = self.partial / name
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            raise ResourceError(f"cannot write {path}: {error.strerror}") from error
        self.adopt(name)
        return path

    def adopt(self, name: str) -> None:
        """Sync and hash a file that stands in the partial directory already."""
        path = self.partial / name
        try:
            sync(path)
            self.files[name] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
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
            for folder in sorted({(self.partial / name).parent for name in self.files} | {self.partial}):
                sync(folder)
            self.partial.rename(self.out)
            sync(self.out.absolute().parent)
        except OSError as error:
            raise ResourceError(f"cannot publish {self.out}: {error.strerror}") from error
        os.close(self._lock)
        return Artifact(self.out)

    def abandon(self) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)
        os.close(self._lock)


def pack_linear(name: str, packed: PackedWeight) -> dict[str, Tensor]:
    """The tensors under which a linear is stored: `NAME.weight` and, when quantised, `NAME.scales`."""
    stored = {f"{name}.weight": packed.codes}
    return stored if packed.scales is None else {**stored, f"{name}.scales": packed.scales}
