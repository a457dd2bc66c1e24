"""What an artifact or a checkpoint consists of, as plain data for a table or JSON. Reads headers, not weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from edge_vla.artifact import EMBEDDINGS, HEAD, MANIFEST, VISION, Artifact, Linear
from edge_vla.checkpoint import key_table, open_checkpoint
from edge_vla.checkpoint.keys import DECODER_PREFIX, vision_keys
from edge_vla.checkpoint.quantised import DequantisedTensors
from edge_vla.errors import ArtifactError
from edge_vla.openvla import PolicyConfig
from edge_vla.quant import stored_bytes

LINEARS = "decoder linears"


def describe(path: str) -> dict[str, Any]:
    """`parts`: rows of part, format, tensors, parameters, bytes; `facts`: what else a user asks first."""
    if (Path(path) / MANIFEST).exists():
        return _artifact(Artifact(Path(path)))
    checkpoint = open_checkpoint(path)
    table = key_table(checkpoint.config.spec)
    tensors, sizes = checkpoint.tensors, defaultdict[tuple[str, str], list[tuple[int, int]]](list)
    for name, key in table.items():
        parameters = math.prod(key.shape)
        stored = tensors.bytes(name) if isinstance(tensors, DequantisedTensors) else None
        form = "as 16 bits" if stored is None else str(tensors.layout)  # type: ignore[attr-defined]
        part = "dead (never run)" if not key.live else _part(name) if stored is None else _quantised_part(name)
        sizes[part, form].append((parameters, 2 * parameters if stored is None else stored))
    return {
        "parts": [
            _row(part, form, len(members), sum(count for count, _ in members), sum(size for _, size in members))
            for (part, form), members in sizes.items()
        ],
        "facts": {"source": checkpoint.origin, **_facts(checkpoint.config)},
    }


def _artifact(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    files = manifest.files
    linears: dict[str, list[Linear]] = defaultdict(list)
    for linear in [linear for layer in manifest.layers for linear in layer.values()]:
        linears[linear.scheme.value].append(linear)
    spec = manifest.config.spec
    parts = [
        *_vision(artifact),
        *(_linears(scheme, members) for scheme, members in linears.items()),
        _row("head (action rows)", "16 bits", 2, (spec.action.bins + 1) * spec.decoder.width, files[HEAD]["size"]),
        _row(
            "embeddings (host)", "16 bits", 1, spec.decoder.vocab_rows * spec.decoder.width, files[EMBEDDINGS]["size"]
        ),
    ]
    return {
        "parts": parts,
        "facts": {
            "identity": artifact.identity,
            "made from": manifest.source["origin"],
            "adapters": manifest.source["adapters"],
            "recipe": dict(manifest.recipe),
            "bits per decoder weight": _bits_per_weight([part for part in parts if part["part"] == LINEARS]),
            "total bytes": sum(entry["size"] for entry in files.values()),
            "bytes on the device": artifact.device_bytes,
            **_facts(manifest.config),
        },
    }


def _vision(artifact: Artifact) -> Iterator[dict[str, Any]]:
    """Towers and projector, matrices in 8 bits apart from the rest in 16."""
    path, spec = artifact.directory / VISION, artifact.manifest.config.spec
    try:
        with safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
            kinds = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}): export again") from error
    names = vision_keys(spec)
    eight = [name for name in names if name in kinds and kinds[name][0] == "I8"]
    rest = [name for name in names if name in kinds and name not in eight]
    for form, chosen, width in (("int8", eight, 1), ("16 bits", rest, 2)):
        if chosen:
            count = sum(math.prod(kinds[name][1]) for name in chosen)
            scales = sum(2 * kinds[name][1][0] for name in chosen) if width == 1 else 0
            yield _row("towers, projector", form, len(chosen), count, width * count + scales)


def _linears(scheme: str, members: Sequence[Linear]) -> dict[str, Any]:
    size = sum(stored_bytes(linear.scheme, linear.shape, linear.group) for linear in members)
    return _row(LINEARS, scheme, len(members), sum(math.prod(linear.shape) for linear in members), size)


def _bits_per_weight(parts: Sequence[Mapping[str, Any]]) -> float:
    size, parameters = (sum(int(part[name]) for part in parts) for name in ("bytes", "parameters"))
    return round(8 * size / parameters, 3)


def _row(part: str, form: str, tensors: int, parameters: int, size: int) -> dict[str, Any]:
    return {"part": part, "format": form, "tensors": tensors, "parameters": parameters, "bytes": size}


def _part(name: str) -> str:
    if "embed_tokens" in name or "lm_head" in name:
        return name.rpartition(".")[0].rpartition(".")[2]
    return name.partition(".")[0]


def _quantised_part(name: str) -> str:
    return LINEARS if name.startswith(DECODER_PREFIX) else _part(name)


def _facts(config: PolicyConfig) -> dict[str, Any]:
    spec = config.spec
    return {
        "towers": [tower.name for tower in spec.towers],
        "image": f"{spec.image_size} px, {config.image.resize}, {spec.patches} patches",
        "decoder": f"{spec.decoder.layers} layers, width {spec.decoder.width}",
        "action tokens": f"{spec.action.first}..{spec.action.end - 1}",
        "prompt": config.prompt.value,
        "data sets (unnorm_key)": sorted(config.statistics),
    }
