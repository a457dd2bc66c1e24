"""The decoder's layers, each read, quantised, packed, written and journalled before the next is read.

Here they are rounded to nearest, one weight at a time; `export.calibrated` chooses codes on recorded frames.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from edge_vla.artifact import NORMS, Linear, layer_file
from edge_vla.checkpoint import Checkpoint
from edge_vla.checkpoint.keys import layer_prefix
from edge_vla.checkpoint.quantised import stored_codes
from edge_vla.export.formats import Formats
from edge_vla.export.progress import Progress
from edge_vla.export.units import LayerWritten
from edge_vla.export.writer import ArtifactWriter
from edge_vla.quant import PackedWeight, quantise, relative_error, sixteen

Linears = dict[str, Linear]


def round_layers(checkpoint: Checkpoint, formats: Formats, writer: ArtifactWriter, progress: Progress) -> list[Linears]:
    """Every linear at its nearest codes, or at the source's own where it has codes of that format already."""
    for index in begin_layers(writer, len(formats), progress):
        packed, linears = dict[str, PackedWeight](), Linears()
        for name, form in formats[index].items():
            key = f"{layer_prefix(index)}{name}.weight"
            weight = checkpoint.tensors.load(key)
            packed[name] = stored_codes(checkpoint.tensors, key, *form) or quantise(weight, *form)
            linears[name] = describe(weight, packed[name])
        write_layer(checkpoint, index, packed, {}, writer)
        finish_layer(writer, progress, LayerWritten(layer=index, linears=linears, scalings={}))
    return [unit.linears for unit in written_layers(writer, len(formats))]


def begin_layers(writer: ArtifactWriter, layers: int, progress: Progress) -> list[int]:
    """The layers that are still to be written."""
    left = writer.unfinished(LayerWritten, range(layers))
    progress.stage("decoder", layers, layers - len(left))
    return left


def write_layer(
    checkpoint: Checkpoint,
    index: int,
    packed: Mapping[str, PackedWeight],
    norms: Mapping[str, Tensor],
    writer: ArtifactWriter,
) -> None:
    """One layer's file. `norms` replace the checkpoint's where scales have moved."""
    stored = {name: sixteen(checkpoint.tensors.load(layer_prefix(index) + name)) for name in NORMS} | dict(norms)
    for name in checkpoint.config.spec.decoder.linears():
        parts = {"weight": packed[name].codes, "scales": packed[name].scales, "zeros": packed[name].zeros}
        stored |= {f"{name}.{part}": tensor for part, tensor in parts.items() if tensor is not None}
    writer.save(layer_file(index), stored)


def finish_layer(writer: ArtifactWriter, progress: Progress, unit: LayerWritten) -> None:
    writer.finish(unit)
    name, worst = max(unit.linears.items(), key=lambda item: item[1].error)
    progress.step(f"worst error {worst.error:.2%} ({name.rpartition('.')[2]})")


def written_layers(writer: ArtifactWriter, layers: int) -> list[LayerWritten]:
    """All layers' units, in order."""
    return [unit for index in range(layers) if (unit := writer.get(LayerWritten, index)) is not None]


def describe(weight: Tensor, packed: PackedWeight) -> Linear:
    """How a linear is stored, and its error in three digits: too few to depend on the order of a sum."""
    return Linear(packed.scheme, packed.shape, packed.group, float(f"{relative_error(weight, packed):.2e}"))
