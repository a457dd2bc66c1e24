"""Weights for `make bench-gpu`: a 7B policy made on the device from seeds, and artifacts of it, rounded to nearest.

Nothing is transferred and nothing is calibrated: such an artifact loads and runs as any other does, and means nothing.
Its hashes are zeros, so it passes for no export. Knows tensors and files; knows nothing of clocks.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from edge_vla.artifact import (
    EMBEDDINGS,
    GRAPH,
    HEAD,
    MANIFEST,
    NORMS,
    TOKENIZER,
    VISION,
    VISION_SCALES,
    Artifact,
    Linear,
    Manifest,
    RecordedRecipe,
    Source,
    VisionCheck,
    layer_file,
)
from edge_vla.checkpoint import Checkpoint, open_checkpoint
from edge_vla.checkpoint.keys import DECODER_PREFIX, layer_prefix, vision_keys
from edge_vla.checkpoint.keys import EMBEDDINGS as TABLE
from edge_vla.checkpoint.keys import HEAD as LOGITS
from edge_vla.checkpoint.random import RandomTensors
from edge_vla.files import FileRecord
from edge_vla.quant import Scheme, plan, quantise, sixteen

UNHASHED: Final = "0" * 64
MATRIX: Final = 2  # dimensions of what becomes int8 in the towers, as in an export


def seeded(model: str, device: torch.device) -> Checkpoint:
    """`openvla-7b` or `openvla-tiny` with weights made on the device."""
    made = open_checkpoint(f"random:{model}")
    return replace(made, tensors=RandomTensors(model, made.config.spec, device))


def write(directory: Path, source: Checkpoint, bits: int, vision_bits: int, device: torch.device) -> Artifact:
    """An artifact of `source`: rounded to nearest on the device, a layer at a time. There whole, or not at all."""
    part = directory.with_name(directory.name + ".partial")
    shutil.rmtree(part, ignore_errors=True)
    _write(part, source, bits, vision_bits, device)
    return Artifact(part.rename(directory))


def _write(directory: Path, source: Checkpoint, bits: int, vision_bits: int, device: torch.device) -> None:
    spec = source.config.spec
    (directory / "decoder").mkdir(parents=True)
    layers = tuple(_write_layer(directory, source, index, bits, device) for index in range(spec.decoder.layers))
    first, end = spec.action.first, spec.action.end
    norm, head = sixteen(source.tensors.load(f"{DECODER_PREFIX}norm.weight")), sixteen(source.tensors.load(LOGITS))
    _save({"actions": head[first:end], "norm.weight": norm}, directory / HEAD)
    _save({"embed_tokens.weight": sixteen(source.tensors.load(TABLE))}, directory / EMBEDDINGS)
    _save(_vision(source, vision_bits, device), directory / VISION)
    (directory / TOKENIZER).write_text(source.tokenizer_json, encoding="utf-8")
    (directory / GRAPH).touch()  # nothing here reads it
    manifest = Manifest(
        config=source.config,
        source=Source(source.origin, 0),
        recipe=RecordedRecipe(bits=bits, vision_bits=vision_bits),
        layers=layers,
        vision_check=VisionCheck(0.0, 0.0),
    )
    paths = [path for path in directory.rglob("*") if path.is_file()]
    files = {str(path.relative_to(directory)): FileRecord(path.stat().st_size, UNHASHED) for path in sorted(paths)}
    (directory / MANIFEST).write_text(json.dumps(replace(manifest, files=files).to_json()), encoding="utf-8")


def _write_layer(
    directory: Path, source: Checkpoint, index: int, bits: int, device: torch.device
) -> Mapping[str, Linear]:
    tensors, linears, prefix = dict[str, Tensor](), dict[str, Linear](), layer_prefix(index)
    for name, shape in source.config.spec.decoder.linears().items():
        scheme, group = plan(bits, shape[1], None, name)
        packed = quantise(source.tensors.load(f"{prefix}{name}.weight").to(device), scheme, group)
        tensors[f"{name}.weight"] = packed.codes
        if packed.scales is not None:
            tensors[f"{name}.scales"] = packed.scales
        linears[name] = Linear(scheme, shape, group, 0.0)
    tensors |= {name: sixteen(source.tensors.load(prefix + name)) for name in NORMS}
    _save(tensors, directory / layer_file(index))
    return linears


def _vision(source: Checkpoint, bits: int, device: torch.device) -> dict[str, Tensor]:
    tensors = dict[str, Tensor]()
    for name in vision_keys(source.config.spec):
        weight = source.tensors.load(name)
        if bits == 8 and weight.ndim == MATRIX:
            packed = quantise(weight.to(device), Scheme.INT8, None)
            assert packed.scales is not None, "int8 has scales"
            tensors |= {name: packed.codes, name + VISION_SCALES: packed.scales}
        else:
            tensors[name] = sixteen(weight)
    return tensors


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)
