"""Checkpoint -> artifact, one decoder layer at a time: merge, round to nearest, pack, hash, write.

Memory while weights are written is one layer, or the 16-bit towers; the golden frame then loads the artifact as a
robot would. The directory gets its name only when the manifest is written; whatever goes wrong before that leaves
nothing under it.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from edge_vla.artifact import EMBEDDINGS, GRAPH, HEAD, NORMS, TOKENIZER, VISION, Artifact, Linear, Manifest, layer_file
from edge_vla.checkpoint import Checkpoint, TensorSource, key_table, open_checkpoint
from edge_vla.checkpoint.keys import DECODER_PREFIX, layer_prefix, vision_keys
from edge_vla.checkpoint.keys import EMBEDDINGS as EMBEDDINGS_KEY
from edge_vla.checkpoint.keys import HEAD as HEAD_KEY
from edge_vla.errors import ResourceError
from edge_vla.export.golden import MOST_CANDIDATES, choose_golden
from edge_vla.export.progress import Progress, Silent
from edge_vla.export.recipe import Recipe
from edge_vla.export.vision import check_graph, export_vision, require_exporter
from edge_vla.export.writer import ArtifactWriter, pack_linear
from edge_vla.frames import Frame, synthetic_image
from edge_vla.openvla import PolicyConfig, preprocess
from edge_vla.quant import Scheme, plan, quantise, relative_error, sixteen, stored_bytes
from edge_vla.spec import PolicySpec

SPARE = 1.1  # free disk asked for, over what will be written


def export(
    source: str | Path,
    out: Path,
    recipe: Recipe | None = None,
    adapters: Sequence[Path] = (),
    frames: Sequence[Frame] = (),
    progress: Progress | None = None,
) -> Artifact:
    """Make the artifact `out` from `source` with `adapters` merged in order.

    `frames` are candidates for the golden frame; without any, synthetic ones are used. Raises a typed error, and
    leaves nothing under `out`, for anything that is wrong with the input, the recipe or the disk.
    """
    recipe, progress = recipe or Recipe(), progress or Silent()
    require_exporter()
    checkpoint = open_checkpoint(source, adapters, recipe.merge_arithmetic)
    schemes = _schemes(checkpoint.config.spec, recipe)
    _check_disk(checkpoint.config.spec, schemes, out)
    for frame in frames[:MOST_CANDIDATES]:  # known now, not after hours
        frame.open()
        checkpoint.config.statistics.resolve(frame.unnorm_key or next(iter(checkpoint.config.statistics)))
    writer = ArtifactWriter(out)
    try:
        return _export(checkpoint, recipe, schemes, frames, writer, progress)
    except BaseException:  # Ctrl-C too leaves nothing behind
        writer.abandon()
        raise


def _export(
    checkpoint: Checkpoint,
    recipe: Recipe,
    schemes: dict[str, tuple[Scheme, int | None]],
    frames: Sequence[Frame],
    writer: ArtifactWriter,
    progress: Progress,
) -> Artifact:
    config, source = checkpoint.config, checkpoint.tensors
    layers = _write_decoder(source, config.spec, schemes, writer, progress)
    progress.stage("vision", 3)
    _write_ends(source, config.spec, writer)
    writer.write(TOKENIZER, checkpoint.tokenizer_json.encode("utf-8"))
    progress.step("embeddings, head, tokenizer")
    export_vision(source, config.spec, writer)
    progress.step("towers, projector, ONNX graph")
    check = _check_vision(writer, config)
    progress.step(f"ONNX against torch: {check['max_difference']:.1e} of {check['max_magnitude']:.1e}")
    manifest = Manifest(
        config=config,
        source=_provenance(checkpoint),
        recipe=dataclasses.asdict(recipe),
        layers=tuple(layers),
        vision_check=check,
        golden=(),
    )
    progress.stage("golden frame", 1)
    golden = choose_golden(writer.draft(manifest), frames, writer)
    progress.step(f"narrowest lead {min(golden.margins):.2f}, rounding moves {golden.noise:.2f}")
    return writer.publish(dataclasses.replace(manifest, golden=(golden,)))


def _schemes(spec: PolicySpec, recipe: Recipe) -> dict[str, tuple[Scheme, int | None]]:
    return {name: plan(recipe.bits, shape[1], recipe.group, name) for name, shape in spec.decoder.linears().items()}


def _write_decoder(
    source: TensorSource,
    spec: PolicySpec,
    schemes: dict[str, tuple[Scheme, int | None]],
    writer: ArtifactWriter,
    progress: Progress,
) -> list[dict[str, Linear]]:
    progress.stage("decoder", spec.decoder.layers)
    layers = []
    for index in range(spec.decoder.layers):
        linears: dict[str, Linear] = {}
        stored: dict[str, Tensor] = {name: sixteen(source.load(layer_prefix(index) + name)) for name in NORMS}
        for name, (scheme, group) in schemes.items():
            weight = source.load(f"{layer_prefix(index)}{name}.weight")
            packed = quantise(weight, scheme, group)
            # Three digits: enough to compare layers, too few to depend on the order of a sum.
            error = float(f"{relative_error(weight, packed):.2e}")
            linears[name] = Linear(scheme, packed.shape, group, error)
            stored |= pack_linear(name, packed)
        writer.save(layer_file(index), stored)
        layers.append(linears)
        worst = max(linears.items(), key=lambda item: item[1].error)
        progress.step(f"worst error {worst[1].error:.2%} ({worst[0].rpartition('.')[2]})")
    return layers


def _write_ends(source: TensorSource, spec: PolicySpec, writer: ArtifactWriter) -> None:
    """The embedding table whole, and of the head only the rows of action ids."""
    writer.save(EMBEDDINGS, {"embed_tokens.weight": sixteen(source.load(EMBEDDINGS_KEY))})
    actions = source.load(HEAD_KEY)[spec.action.first : spec.action.end].clone()
    norm = source.load(DECODER_PREFIX + "norm.weight")
    writer.save(HEAD, {"actions": sixteen(actions), "norm.weight": sixteen(norm)})


def _check_vision(writer: ArtifactWriter, config: PolicyConfig) -> dict[str, float]:
    pixels = preprocess(synthetic_image(0, config.spec.image_size), config.image)[None]
    return check_graph(writer.partial / GRAPH, writer.tensors(VISION), config.spec, np.ascontiguousarray(pixels))


def _provenance(checkpoint: Checkpoint) -> dict[str, object]:
    """Hashes, and a name only where it is public: the same weights in another directory give the same manifest."""
    return {
        "origin": "a local directory" if checkpoint.local else checkpoint.origin,
        "adapters": len(checkpoint.adapters),
        "files": checkpoint.identity(),
    }


def _check_disk(spec: PolicySpec, schemes: dict[str, tuple[Scheme, int | None]], out: Path) -> None:
    """Raise ResourceError before the first byte if the artifact will not fit."""
    table = key_table(spec)
    need = sum(2 * math.prod(table[name].shape) for name in (*vision_keys(spec), EMBEDDINGS_KEY))
    need += spec.decoder.layers * sum(
        stored_bytes(schemes[name][0], shape, schemes[name][1]) for name, shape in spec.decoder.linears().items()
    )
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < need * SPARE:
        raise ResourceError(f"{out} needs {need * SPARE / 1e9:.1f} GB, {parent} has {free / 1e9:.1f} GB free")
