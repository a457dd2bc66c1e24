"""What an artifact or a checkpoint consists of, as plain data for a table or JSON. Reads headers, not weights."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from edge_vla.artifact import EMBEDDINGS, HEAD, MANIFEST, VISION, Artifact, layer_file
from edge_vla.checkpoint import key_table, open_checkpoint
from edge_vla.checkpoint.keys import vision_keys
from edge_vla.openvla import PolicyConfig
from edge_vla.quant import Scheme


def describe(path: str) -> dict[str, Any]:
    """`parts`: rows of part, format, tensors, parameters, bytes; `facts`: what else a user asks first."""
    if (Path(path) / MANIFEST).exists():
        return _artifact(Artifact(Path(path)))
    checkpoint = open_checkpoint(path)
    table = key_table(checkpoint.config.spec)
    parts: dict[str, list[int]] = defaultdict(list)
    for name, key in table.items():
        parts[_part(name) if key.live else "dead (never run)"].append(math.prod(key.shape))
    return {
        "parts": [
            {
                "part": part,
                "format": "checkpoint",
                "tensors": len(sizes),
                "parameters": sum(sizes),
                "bytes": 2 * sum(sizes),
            }
            for part, sizes in parts.items()
        ],
        "facts": {"source": checkpoint.origin, **_facts(checkpoint.config)},
    }


def _artifact(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    files, table = manifest.files, key_table(manifest.config.spec)
    rows: dict[Scheme, list[int]] = defaultdict(list)
    for layer in manifest.layers:
        for linear in layer.values():
            rows[linear.scheme].append(math.prod(linear.shape))
    decoder_bytes = sum(files[layer_file(i)]["size"] for i in range(len(manifest.layers)))
    vision = [math.prod(table[name].shape) for name in vision_keys(manifest.config.spec)]
    spec = manifest.config.spec
    parts = [
        _row("towers, projector", "16 bits", len(vision), sum(vision), files[VISION]["size"]),
        *(_row("decoder linears", scheme.value, len(sizes), sum(sizes), 0) for scheme, sizes in rows.items()),
        _row("head (action rows)", "16 bits", 2, (spec.action.bins + 1) * spec.decoder.width, files[HEAD]["size"]),
        _row(
            "embeddings (host)", "16 bits", 1, spec.decoder.vocab_rows * spec.decoder.width, files[EMBEDDINGS]["size"]
        ),
    ]
    linears = [part for part in parts if part["part"] == "decoder linears"]
    linears[0]["bytes"] = decoder_bytes
    return {
        "parts": parts,
        "facts": {
            "identity": artifact.identity,
            "made from": manifest.source["origin"],
            "adapters": manifest.source["adapters"],
            "recipe": dict(manifest.recipe),
            "bits per decoder weight": round(8 * decoder_bytes / sum(map(sum, rows.values())), 3),
            "total bytes": sum(entry["size"] for entry in files.values()),
            **_facts(manifest.config),
        },
    }


def _row(part: str, form: str, tensors: int, parameters: int, size: int) -> dict[str, Any]:
    return {"part": part, "format": form, "tensors": tensors, "parameters": parameters, "bytes": size}


def _part(name: str) -> str:
    if "embed_tokens" in name or "lm_head" in name:
        return name.rpartition(".")[0].rpartition(".")[2]
    return name.partition(".")[0]


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
