"""An artifact directory, read without trusting it: hashes, sizes, paths, and the shape and type of every tensor."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from edge_vla import typed_json
from edge_vla.artifact.manifest import GRAPH, HEAD, MANIFEST, VISION, Manifest, layer_file
from edge_vla.artifact.tensors import dequantise_vision, pack_vision, unpack_linear
from edge_vla.errors import ArtifactError, CheckpointError, UsageError
from edge_vla.files import sha256_of
from edge_vla.quant import PackedWeight, as_int4
from edge_vla.suggestions import no_such

NORMS: Final = ("input_layernorm.weight", "post_attention_layernorm.weight")
Shapes = Mapping[str, tuple[int, ...]]


class Artifact:
    """An artifact opened for reading. Opening checks the manifest and every file's size; `verify` hashes all.

    UsageError where there is no such directory, ArtifactError where it is no artifact, or a damaged one.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        path = directory / MANIFEST
        if not directory.is_dir():
            raise UsageError(no_such(directory))
        if not path.is_file():
            raise ArtifactError(f"{directory} is not an artifact: it has no {MANIFEST}{meant(directory)}")
        self.bytes = path.read_bytes()
        try:
            raw = typed_json.parse(self.bytes)
        except ValueError as error:
            raise ArtifactError(f"{path} is not valid JSON ({error}): the artifact is damaged, export again") from error
        self.manifest = Manifest.from_json(raw)
        self._check_sizes()

    @property
    def identity(self) -> str:
        """SHA-256 of the manifest, which holds the SHA-256 of everything else."""
        return hashlib.sha256(self.bytes).hexdigest()

    def verify(self) -> None:
        """Hash every file; raise ArtifactError at the first that differs from the manifest."""
        for name, record in self.manifest.files.items():
            got = sha256_of(self.directory / name)
            if got != record.sha256:
                raise ArtifactError(
                    f"{self.directory / name}: sha256 {got[:12]}…, the manifest says {record.sha256[:12]}…: "
                    "the file was changed or damaged, copy or export the artifact again"
                )

    @property
    def device_bytes(self) -> int:
        """Bytes of the weights on the device, about: all files but embeddings, tokenizer, graph and pictures."""
        layers = [layer_file(index) for index in range(self.manifest.config.spec.decoder.layers)]
        return sum(self.manifest.files[name].size for name in [*layers, HEAD, VISION])

    @property
    def graph(self) -> Path:
        return self.directory / GRAPH

    def text(self, name: str) -> str:
        try:
            return (self.directory / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{self.directory / name} cannot be read ({error}): export again") from error

    def tensors(self, name: str, shapes: Shapes | None = None) -> dict[str, Tensor]:
        """All tensors of one safetensors file. With `shapes`, they must be just those, in 16 bits.

        Int8 weights of towers and projector come as bfloat16, each number rounded once.
        """
        path, tensors = self.directory / name, self._load(name)
        if name == VISION:
            with _tensor_errors(path):
                tensors = dequantise_vision(tensors, torch.bfloat16)
        if shapes is not None:
            _check_shapes(tensors, shapes, path)
        return tensors

    def vision_weights(self, shapes: Shapes) -> dict[str, Tensor | PackedWeight]:
        """Towers and projector as they are stored: int8 matrices as packed weights, the rest in 16 bits.

        ArtifactError if they are not of these shapes.
        """
        with _tensor_errors(self.directory / VISION):
            weights = pack_vision(self._load(VISION))
        _check_shapes(weights, shapes, self.directory / VISION)
        return weights

    def layers(self) -> Iterator[tuple[dict[str, PackedWeight], dict[str, Tensor]]]:
        """Linears and norms of each decoder layer, read one layer at a time.

        Linears in fewer than 4 bits come as int4, which every device has a kernel for.
        """
        width = self.manifest.config.spec.decoder.width
        for index, linears in enumerate(self.manifest.layers):
            path, tensors = self.directory / layer_file(index), self.tensors(layer_file(index))
            with _tensor_errors(path):
                packed = {name: as_int4(unpack_linear(name, linear, tensors)) for name, linear in linears.items()}
                norms = {name: tensors[name] for name in NORMS}
            _check_shapes(norms, dict.fromkeys(NORMS, (width,)), path)
            yield packed, norms

    def _load(self, name: str) -> dict[str, Tensor]:
        try:
            tensors: dict[str, Tensor] = load_file(self.directory / name)
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{self.directory / name} cannot be read ({error}): export again") from error
        return tensors

    def _check_sizes(self) -> None:
        root = os.path.realpath(self.directory)
        for name, record in self.manifest.files.items():
            path = self.directory / name
            # Equal as text too, so that "./x" is not a second name of x.
            if "\0" in name or os.path.realpath(path) != f"{root}/{name}":
                raise ArtifactError(f"{MANIFEST} names {name!r}, which is outside the artifact or a link")
            if not path.is_file():
                raise ArtifactError(f"{path} is missing: copy or export the artifact again")
            if path.stat().st_size != record.size:
                raise ArtifactError(
                    f"{path} has {path.stat().st_size} bytes, the manifest says {record.size}: copy it again"
                )


def meant(directory: Path) -> str:
    """`; did you mean DIRECTORY/NAME?` where an artifact lies in the directory; or nothing."""
    found = next(iter(sorted(path.parent for path in directory.glob(f"*/{MANIFEST}"))), None)
    return "" if found is None else f"; did you mean {found}?"


@contextmanager
def _tensor_errors(path: Path) -> Iterator[None]:
    """A missing or malformed tensor as an ArtifactError that names its file."""
    try:
        yield
    except KeyError as error:
        raise ArtifactError(f"{path} lacks {error}: export again") from error
    except CheckpointError as error:
        raise ArtifactError(f"{path}: {error}: export again") from error


def _check_shapes(tensors: Mapping[str, Tensor | PackedWeight], shapes: Shapes, path: Path) -> None:
    """ArtifactError unless `tensors` are just those of `shapes`, and all but packed weights in 16 bits."""
    got = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    for name in {**shapes, **got}:
        if got.get(name) != shapes.get(name):
            raise ArtifactError(f"{path}: {name} is {got.get(name)}, expected {shapes.get(name)}: export again")
        tensor = tensors[name]
        if isinstance(tensor, Tensor) and tensor.dtype not in (torch.bfloat16, torch.float16):
            raise ArtifactError(f"{path}: {name} is {tensor.dtype}, expected 16 bits: export again")
