"""The weights of a Hugging Face directory: a shard for each layer and each other part, read as it is written.

So memory is one layer, or one tower.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

from torch import Tensor

from edge_vla.artifact import NORMS, Linear, layer_file, unpack_linear
from edge_vla.checkpoint import Checkpoint
from edge_vla.checkpoint.folder import INDEX
from edge_vla.checkpoint.keys import DECODER_PREFIX, layer_prefix
from edge_vla.export.progress import Progress
from edge_vla.export.writer import ArtifactWriter
from edge_vla.interop import Written
from edge_vla.quant import sixteen

WRAPPER: Final = DECODER_PREFIX.removesuffix("model.")  # a policy's names have this before a plain Llama's


def write_shards(
    checkpoint: Checkpoint,
    layers: Sequence[Mapping[str, Linear]],
    layout: Written,
    writer: ArtifactWriter,
    progress: Progress,
    *,
    decoder_only: bool,
) -> None:
    """The layers, packed as `layout` wants them, everything else of the checkpoint in 16 bits, and the index."""
    others = _others(checkpoint, decoder_only=decoder_only)
    count = len(layers) + len(others)
    index: dict[str, str] = {}
    size = 0
    progress.stage(layout.name, count)
    for number in range(count):
        if number < len(layers):
            tensors = _layer(number, layers[number], layout, writer)
        else:
            names = others[number - len(layers)]
            tensors = {name: sixteen(checkpoint.tensors.load(name)) for name in names}
        if decoder_only:
            tensors = {name.removeprefix(WRAPPER): tensor for name, tensor in tensors.items()}
        name = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        writer.save(name, tensors, {"format": "pt"})
        index |= dict.fromkeys(tensors, name)
        size += sum(tensor.nbytes for tensor in tensors.values())
        progress.step(name)
    write_json(writer, INDEX, {"metadata": {"total_size": size}, "weight_map": index})


def write_json(writer: ArtifactWriter, name: str, value: Mapping[str, object]) -> None:
    writer.write(name, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode("utf-8"))


def _layer(index: int, linears: Mapping[str, Linear], layout: Written, writer: ArtifactWriter) -> dict[str, Tensor]:
    stored, prefix = writer.tensors(layer_file(index)), layer_prefix(index)
    found = {prefix + name: stored[name] for name in NORMS}
    for name, linear in linears.items():
        parts = layout.encode(unpack_linear(name, linear, stored))
        found |= {f"{prefix}{name}.{part}": tensor for part, tensor in parts.items()}
    return found


def _others(checkpoint: Checkpoint, *, decoder_only: bool) -> list[list[str]]:
    """Names outside the layers, by shard: each tower, the projector, the embeddings, the last norm, the head."""
    parts: dict[str, list[str]] = {}
    for name in sorted(checkpoint.tensors.names()):
        if not name.startswith(f"{DECODER_PREFIX}layers.") and (name.startswith(WRAPPER) or not decoder_only):
            inside = name.removeprefix(DECODER_PREFIX)
            part = ".".join(inside.split(".")[: 1 if inside.startswith("projector.") else 2])
            parts.setdefault(part, []).append(name)
    return list(parts.values())
