"""What an artifact or a checkpoint consists of. Reads headers, not weights."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from edge_vla.artifact import EMBEDDINGS, HEAD, MANIFEST, VISION, Artifact, Linear
from edge_vla.checkpoint import Reading, diagnose, key_table, open_checkpoint
from edge_vla.checkpoint.keys import DECODER_PREFIX, vision_keys
from edge_vla.checkpoint.quantised import DequantisedTensors
from edge_vla.errors import ArtifactError, UsageError
from edge_vla.openvla import PolicyConfig
from edge_vla.quant import stored_bytes

LINEARS = "decoder linears"


@dataclass(frozen=True)
class Part:
    """All tensors of one part of the network that share a format."""

    part: str
    format: str
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Description:
    """The parts, and by name what else a user asks first."""

    parts: Sequence[Part]
    facts: Mapping[str, object]
    reading: Reading | None = None

    def to_json(self) -> dict[str, object]:
        parts, reading = [dataclasses.asdict(part) for part in self.parts], self.reading
        return {"parts": parts, "facts": dict(self.facts), "reading": None if reading is None else reading.to_json()}


def describe(
    path: str, adapters: Sequence[Path] = (), *, prompt: str | None = None, statistics: Path | None = None
) -> Description:
    """Of an artifact directory, or of any source that `export` takes with the same adapters and choices.

    A folder that is recognised as something else has a `reading.refusal` and no parts.
    """
    if (Path(path) / MANIFEST).exists():
        if adapters or prompt is not None or statistics is not None:
            raise UsageError(f"{path} is an artifact: its adapters, prompt and statistics are in it already")
        return _artifact(Artifact(Path(path)))
    if (refused := diagnose(path, adapters)) is not None:
        return Description([], {"source": path}, refused)
    checkpoint = open_checkpoint(path, adapters, prompt=prompt, statistics=statistics)
    tensors, sizes = checkpoint.tensors, defaultdict[tuple[str, str], list[tuple[int, int]]](list)
    for name, key in key_table(checkpoint.config.spec).items():
        parameters, size, form, part = math.prod(key.shape), 2 * math.prod(key.shape), "as 16 bits", _part(name)
        stored = tensors.bytes(name) if isinstance(tensors, DequantisedTensors) else None
        if isinstance(tensors, DequantisedTensors) and stored is not None:
            size, form, part = stored, str(tensors.layout), LINEARS if name.startswith(DECODER_PREFIX) else part
        sizes[part if key.live else "dead (never run)", form].append((parameters, size))
    parts = [
        Part(part, form, len(members), sum(count for count, _ in members), sum(size for _, size in members))
        for (part, form), members in sizes.items()
    ]
    return Description(parts, {"source": checkpoint.origin, **_facts(checkpoint.config)}, checkpoint.reading)


def _artifact(artifact: Artifact) -> Description:
    manifest, spec = artifact.manifest, artifact.manifest.config.spec
    linears: dict[str, list[Linear]] = defaultdict(list)
    for linear in [linear for layer in manifest.layers for linear in layer.values()]:
        linears[linear.scheme.value].append(linear)
    decoder = [_linears(scheme, members) for scheme, members in linears.items()]
    size, parameters = sum(part.bytes for part in decoder), sum(part.parameters for part in decoder)
    head, table = (spec.action.bins + 1) * spec.decoder.width, spec.decoder.vocab_rows * spec.decoder.width
    return Description(
        [
            *_vision(artifact),
            *decoder,
            Part("head (action rows)", "16 bits", 2, head, manifest.files[HEAD].size),
            Part("embeddings (host)", "16 bits", 1, table, manifest.files[EMBEDDINGS].size),
        ],
        {
            "identity": artifact.identity,
            "made from": manifest.source.origin,
            "adapters": manifest.source.adapters,
            "recipe": manifest.recipe.to_json(),
            "bits per decoder weight": round(8 * size / parameters, 3),
            "total bytes": sum(record.size for record in manifest.files.values()),
            "bytes on the device": artifact.device_bytes,
            **_facts(manifest.config),
        },
    )


def _vision(artifact: Artifact) -> Iterator[Part]:
    """Towers and projector: int8 matrices, then the rest in 16 bits."""
    path, spec = artifact.directory / VISION, artifact.manifest.config.spec
    try:
        with safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
            kinds = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}): export again") from error
    names = vision_keys(spec)
    int8 = [name for name in names if name in kinds and kinds[name][0] == "I8"]
    rest = [name for name in names if name in kinds and name not in int8]
    for form, chosen, each in (("int8", int8, 1), ("16 bits", rest, 2)):
        if chosen:
            count = sum(math.prod(kinds[name][1]) for name in chosen)
            scales = sum(2 * kinds[name][1][0] for name in chosen) if each == 1 else 0
            yield Part("towers, projector", form, len(chosen), count, each * count + scales)


def _linears(scheme: str, members: Sequence[Linear]) -> Part:
    size = sum(stored_bytes(linear.scheme, linear.shape, linear.group) for linear in members)
    return Part(LINEARS, scheme, len(members), sum(math.prod(linear.shape) for linear in members), size)


def _part(name: str) -> str:
    if "embed_tokens" in name or "lm_head" in name:
        return name.rpartition(".")[0].rpartition(".")[2]
    return name.partition(".")[0]


def _facts(config: PolicyConfig) -> dict[str, object]:
    spec = config.spec
    return {
        "towers": [tower.name for tower in spec.towers],
        "image": f"{spec.image_size} px, {config.image.resize}, {spec.patches} patches",
        "decoder": f"{spec.decoder.layers} layers, width {spec.decoder.width}",
        "action tokens": f"{spec.action.first}..{spec.action.end - 1}",
        "prompt": config.prompt.value,
        "data sets (unnorm_key)": sorted(config.statistics),
    }
