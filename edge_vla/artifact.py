"""The contract between the two islands: an artifact directory and its manifest.

Knows the layout, hashes and versions, how to publish a directory whole or not at all, and how to read one back
without trusting it. Knows nothing of how weights are made or run. The format is written down in export/FORMAT.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from edge_vla.errors import ArtifactError, CheckpointError
from edge_vla.files import sha256_of
from edge_vla.openvla import ImageContract, PolicyConfig, PromptStyle, Statistics
from edge_vla.quant import NARROW, PackedWeight, Scheme, as_int4, dequantise
from edge_vla.spec import ActionSpec, DecoderSpec, PolicySpec, TowerSpec

FORMAT: Final = "edge-vla"
VERSIONS: Final = (1, 2, 3)  # that are read; 2 adds int3, int2 and int8 towers, 3 uint4 and w8a8
MANIFEST: Final = "manifest.json"
EVIDENCE: Final = "evidence"
VISION: Final = "vision.safetensors"
VISION_SCALES: Final = ".scales"  # after the name of a weight in VISION that is int8
GRAPH: Final = "vision.onnx"
EMBEDDINGS: Final = "embeddings.safetensors"
HEAD: Final = "head.safetensors"
TOKENIZER: Final = "tokenizer.json"
NORMS: Final = ("input_layernorm.weight", "post_attention_layernorm.weight")


def layer_file(index: int) -> str:
    return f"decoder/layer-{index:03d}.safetensors"


@dataclass(frozen=True)
class Linear:
    """How one linear layer is stored, and the relative error that rounding it made."""

    scheme: Scheme
    shape: tuple[int, int]
    group: int | None
    error: float


@dataclass(frozen=True)
class GoldenFrame:
    """A frame whose tokens this artifact gave when it was made.

    `margins` are the leads of the best token over the second; `noise` is how far rounding alone may move one:
    twice the most that rounding-sized noise in every block and layer did.
    """

    image: str
    instruction: str
    unnorm_key: str
    tokens: tuple[int, ...]
    margins: tuple[float, ...]
    noise: float


@dataclass(frozen=True)
class Manifest:
    """Everything about an artifact that is not a weight. `layers[i][name]` describes one linear."""

    config: PolicyConfig
    source: Mapping[str, Any]
    recipe: Mapping[str, Any]
    layers: tuple[Mapping[str, Linear], ...]
    vision_check: Mapping[str, float]
    golden: tuple[GoldenFrame, ...]
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def version(self) -> int:
        """The oldest whose readers understand it."""
        schemes = {linear.scheme for layer in self.layers for linear in layer.values()}
        if schemes & {Scheme.UINT4, Scheme.W8A8}:
            return 3
        return 2 if schemes & set(NARROW) or self.recipe.get("vision_bits", 16) != 16 else 1

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": self.version,
            "source": dict(self.source),
            "recipe": dict(self.recipe),
            "network": dataclasses.asdict(self.config.spec),
            "prompt": self.config.prompt.value,
            "preprocessing": dataclasses.asdict(self.config.image),
            "statistics": self.config.statistics.raw,
            "layers": [{name: linear_json(linear) for name, linear in layer.items()} for layer in self.layers],
            "vision_check": dict(self.vision_check),
            "golden": [dataclasses.asdict(frame) for frame in self.golden],
            "files": {path: dict(entry) for path, entry in sorted(self.files.items())},
        }

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> Manifest:
        if raw.get("format") != FORMAT:
            raise ArtifactError(f"{MANIFEST}: format is {raw.get('format')!r}, expected {FORMAT!r}")
        if type(raw.get("version")) is not int or raw["version"] not in VERSIONS:
            known = ", ".join(map(str, VERSIONS[:-1])) + f" and {VERSIONS[-1]}"
            raise ArtifactError(
                f"{MANIFEST}: format version {raw.get('version')!r}, this edge-vla reads {known}: export again, "
                "or install the edge-vla that made it"
            )
        try:
            network = raw["network"]
            spec = PolicySpec(
                towers=tuple(TowerSpec(**tower) for tower in network["towers"]),
                decoder=DecoderSpec(**network["decoder"]),
                action=ActionSpec(**network["action"]),
            )
            config = PolicyConfig(
                spec=spec,
                prompt=PromptStyle(raw["prompt"]),
                image=ImageContract(**_tuples(raw["preprocessing"])),
                statistics=Statistics(raw["statistics"], MANIFEST),
            )
            manifest = Manifest(
                config=config,
                source={**raw["source"], "origin": raw["source"]["origin"], "adapters": raw["source"]["adapters"]},
                recipe=dict(raw["recipe"]),
                layers=tuple(
                    {name: linear_from_json(entry) for name, entry in layer.items()} for layer in raw["layers"]
                ),
                vision_check=dict(raw["vision_check"]),
                golden=tuple(map(_golden, raw["golden"])),
                files={path: _file(path, entry) for path, entry in raw["files"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError, CheckpointError) as error:
            raise ArtifactError(f"{MANIFEST} is malformed ({error!r}): export again") from error
        return manifest._check()

    def _check(self) -> Manifest:
        """Itself, or ArtifactError if its parts do not fit each other."""
        image, linears = self.config.image, self.config.spec.decoder.linears()
        if image.size != self.config.spec.image_size or len(image.means) != len(self.config.spec.towers):
            raise ArtifactError(f"{MANIFEST}: the preprocessing is not that of its network: export again")
        if len(self.layers) != self.config.spec.decoder.layers or any(
            {name: linear.shape for name, linear in layer.items()} != linears for layer in self.layers
        ):
            raise ArtifactError(f"{MANIFEST}: the layers are not those of its network: export again")
        needed = {EMBEDDINGS, HEAD, TOKENIZER, VISION, GRAPH, *map(layer_file, range(len(self.layers)))}
        unlisted = sorted((needed | {frame.image for frame in self.golden}) - set(self.files))
        if unlisted:
            raise ArtifactError(f"{MANIFEST} has no hash of {unlisted[0]}, which the policy needs: export again")
        for frame in self.golden:
            key, lengths = frame.unnorm_key, {len(frame.tokens), len(frame.margins)}
            if key not in self.config.statistics or lengths != {self.config.statistics[key].dims}:
                raise ArtifactError(f"{MANIFEST}: golden frame {frame.image} does not fit the statistics: export again")
        return self


class Artifact:
    """An artifact opened for reading. Opening checks the manifest and every file's size; `verify` hashes all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        path = directory / MANIFEST
        if not path.is_file():
            raise ArtifactError(f"{directory} is not an artifact: it has no {MANIFEST}")
        self.bytes = path.read_bytes()
        try:
            raw = json.loads(self.bytes, object_pairs_hook=_unique, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{path} is not valid JSON ({error}): the artifact is damaged, export again") from error
        if not isinstance(raw, dict):
            raise ArtifactError(f"{path}: expected a JSON object, got {type(raw).__name__}")
        self.manifest = Manifest.from_json(raw)
        self._check_sizes()

    @property
    def identity(self) -> str:
        """sha256 of the manifest, which holds the sha256 of everything else."""
        return hashlib.sha256(self.bytes).hexdigest()

    def verify(self) -> None:
        """Hash every file; raise ArtifactError at the first that differs from the manifest."""
        for name, entry in self.manifest.files.items():
            got = sha256_of(self.directory / name)
            if got != entry["sha256"]:
                raise ArtifactError(
                    f"{self.directory / name}: sha256 {got[:12]}…, the manifest says {entry['sha256'][:12]}…: "
                    "the file was changed or damaged, copy or export the artifact again"
                )

    @property
    def device_bytes(self) -> int:
        """What the weights take on the device, about: the files but for the table, tokenizer, graph and pictures."""
        layers = [layer_file(index) for index in range(self.manifest.config.spec.decoder.layers)]
        return sum(int(self.manifest.files[name]["size"]) for name in [*layers, HEAD, VISION])

    @property
    def graph(self) -> Path:
        return self.directory / GRAPH

    def text(self, name: str) -> str:
        try:
            return (self.directory / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{self.directory / name} cannot be read ({error}): export again") from error

    def tensors(self, name: str, shapes: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, Tensor]:
        """All tensors of one safetensors file. With `shapes`, they must be just those, in 16 bits.

        Int8 weights of towers and projector come as bfloat16, each rounded once.
        """
        tensors = self._load(name)
        if name == VISION:
            try:
                tensors = widen_vision(tensors, torch.bfloat16)
            except CheckpointError as error:
                raise ArtifactError(f"{self.directory / name}: {error}: export again") from error
        if shapes is not None:
            _check_shapes(tensors, shapes, self.directory / name)
        return tensors

    def vision_weights(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor | PackedWeight]:
        """Towers and projector as they are stored: matrices in 8 bits as packed weights, the rest in 16 bits.

        They must be of these shapes, else ArtifactError.
        """
        stored, weights = self._load(VISION), dict[str, Tensor | PackedWeight]()
        for name, tensor in stored.items():
            if tensor.dtype == torch.int8 and tensor.ndim == 2:
                outer, inner = tensor.shape
                packed = PackedWeight(Scheme.INT8, (outer, inner), None, tensor, stored.get(name + VISION_SCALES))
                try:
                    weights[name] = packed.check(name)
                except CheckpointError as error:
                    raise ArtifactError(f"{self.directory / VISION}: {error}: export again") from error
            elif not (name.endswith(VISION_SCALES) and name.removesuffix(VISION_SCALES) in stored):
                weights[name] = tensor
        wide = {
            name: torch.empty(weight.shape, dtype=torch.bfloat16, device="meta")
            if isinstance(weight, PackedWeight)
            else weight
            for name, weight in weights.items()
        }
        _check_shapes(wide, shapes, self.directory / VISION)
        return weights

    def _load(self, name: str) -> dict[str, Tensor]:
        try:
            tensors: dict[str, Tensor] = load_file(self.directory / name)
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{self.directory / name} cannot be read ({error}): export again") from error
        return tensors

    def layers(self) -> Iterator[tuple[dict[str, PackedWeight], dict[str, Tensor]]]:
        """Linears and norms of each decoder layer, read one layer at a time.

        Narrow linears come as int4, which every device has a kernel for.
        """
        width = self.manifest.config.spec.decoder.width
        for index, linears in enumerate(self.manifest.layers):
            tensors = self.tensors(layer_file(index))
            try:
                packed = {name: as_int4(unpack_linear(name, linear, tensors)) for name, linear in linears.items()}
                norms = {name: tensors[name] for name in NORMS}
                _check_shapes(norms, dict.fromkeys(NORMS, (width,)), self.directory / layer_file(index))
                yield packed, norms
            except KeyError as error:
                raise ArtifactError(f"{self.directory / layer_file(index)} lacks {error}: export again") from error
            except CheckpointError as error:
                raise ArtifactError(f"{self.directory / layer_file(index)}: {error}: export again") from error

    def _check_sizes(self) -> None:
        root = os.path.realpath(self.directory)
        for name, entry in self.manifest.files.items():
            path = self.directory / name
            # Equal as text too, so that "./x" is not a second name of x.
            if "\0" in name or os.path.realpath(path) != f"{root}/{name}":
                raise ArtifactError(f"{MANIFEST} names {name!r}, which is outside the artifact or a link")
            if not path.is_file():
                raise ArtifactError(f"{path} is missing: copy or export the artifact again")
            if path.stat().st_size != entry["size"]:
                raise ArtifactError(
                    f"{path} has {path.stat().st_size} bytes, the manifest says {entry['size']}: copy it again"
                )


def widen_vision(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Int8 weights and their scales as weights of `dtype`, the rest as it is; CheckpointError if they do not fit."""
    wide: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dtype == torch.int8 and tensor.ndim == 2:
            outer, inner = tensor.shape
            scales = tensors.get(name + VISION_SCALES)
            wide[name] = dequantise(PackedWeight(Scheme.INT8, (outer, inner), None, tensor, scales).check(name), dtype)
        elif not (name.endswith(VISION_SCALES) and name.removesuffix(VISION_SCALES) in tensors):
            wide[name] = tensor
    return wide


def unpack_linear(name: str, linear: Linear, tensors: Mapping[str, Tensor]) -> PackedWeight:
    scales = None if linear.scheme is Scheme.BF16 else tensors[f"{name}.scales"]
    zeros = tensors[f"{name}.zeros"] if linear.scheme is Scheme.UINT4 else None
    codes = tensors[f"{name}.weight"]
    return PackedWeight(linear.scheme, linear.shape, linear.group, codes, scales, zeros).check(name)


def map_matrix(path: Path, name: str) -> Tensor:
    """A tensor of a safetensors file as a memory map: rows are read from disk when they are used."""
    types = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entry = json.loads(file.read(min(length, path.stat().st_size)))[name]
        begin, end = entry["data_offsets"]
        whole = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
        return whole[8 + length + begin : 8 + length + end].view(types[entry["dtype"]]).view(entry["shape"])
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{path} cannot be mapped ({error}): export again") from error


def _check_shapes(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    got = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    for name in {**shapes, **got}:
        if got.get(name) != shapes.get(name):
            raise ArtifactError(f"{path}: {name} is {got.get(name)}, expected {shapes.get(name)}: export again")
        if tensors[name].dtype not in (torch.bfloat16, torch.float16):
            raise ArtifactError(f"{path}: {name} is {tensors[name].dtype}, expected 16 bits: export again")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ: of two values for one key, a reader cannot tell which was meant."""
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError(f"a key appears twice among {sorted(key for key, _ in pairs)}")
    return dict(pairs)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _tuples(raw: Mapping[str, Any]) -> dict[str, Any]:
    """JSON lists as the tuples that frozen dataclasses hold."""

    def convert(value: Any) -> Any:
        return tuple(map(convert, value)) if isinstance(value, list) else value

    return {key: convert(value) for key, value in raw.items()}


def linear_json(linear: Linear) -> dict[str, Any]:
    return {"scheme": linear.scheme.value, "shape": linear.shape, "group": linear.group, "error": linear.error}


def linear_from_json(raw: Mapping[str, Any]) -> Linear:
    (outer, inner), group = raw["shape"], raw["group"]
    if not (group is None or (type(group) is int and group > 0)):
        raise ValueError(f"group must be a positive number or null, got {group!r}")
    return Linear(Scheme(raw["scheme"]), (int(outer), int(inner)), group, float(raw["error"]))


def _golden(raw: Mapping[str, Any]) -> GoldenFrame:
    frame = GoldenFrame(**_tuples(raw))
    numbers = [*frame.margins, frame.noise]
    texts = [frame.image, frame.instruction, frame.unnorm_key]
    if {type(token) for token in frame.tokens} != {int} or not {type(number) for number in numbers} <= {int, float}:
        raise ValueError(f"golden frame: tokens, margins and noise must be numbers, got {dict(raw)}")
    if {type(text) for text in texts} != {str}:
        raise ValueError(f"golden frame: image, instruction and unnorm_key must be texts, got {texts}")
    return frame


def _file(path: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    if type(raw["size"]) is not int or not re.fullmatch("[0-9a-f]{64}", raw["sha256"]):
        raise ValueError(f"{path}: size must be a number of bytes and sha256 64 hexadecimal digits, got {raw}")
    return {"size": raw["size"], "sha256": raw["sha256"]}
