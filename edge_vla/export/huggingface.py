"""Checkpoint -> a Hugging Face directory that other programs load: GPTQ or compressed-tensors.

The decoder's linears are rounded and calibrated exactly as for an artifact, then packed as the format wants them; all
else stays in 16 bits under the names that it had. Like an artifact, the directory gets its name only when it is whole.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from edge_vla.artifact import layer_file
from edge_vla.checkpoint import Checkpoint, key_table, open_checkpoint
from edge_vla.data import Frame
from edge_vla.errors import ResourceError, UsageError
from edge_vla.export.journal import JOURNAL
from edge_vla.export.pipeline import Job, check_room, follow_source, prepare, write_decoder, writing
from edge_vla.export.preflight import HALF, linear_bytes
from edge_vla.export.progress import Progress, Silent
from edge_vla.export.recipe import Recipe
from edge_vla.export.settings import write_settings
from edge_vla.export.shards import write_shards
from edge_vla.export.writer import SCRATCH, ArtifactWriter
from edge_vla.files import sync
from edge_vla.interop import WRITTEN, Written
from edge_vla.interop.integers import BITS, SCHEMES
from edge_vla.quant import GROUPS


def export_checkpoint(
    source: str | Path,
    out: Path,
    form: str,
    recipe: Recipe | None = None,
    adapters: Sequence[Path] = (),
    frames: Sequence[Frame] = (),
    progress: Progress | None = None,
    *,
    decoder_only: bool = False,
) -> Path:
    """Make the directory `out` in the format `form`, `gptq` or `compressed-tensors`, from `source`.

    4 bits in groups that are the same everywhere, or 8 bits with one scale an output; symmetric. With `decoder_only`
    it holds a plain Llama, for programs that know no OpenVLA. Raises a typed error, and leaves nothing under `out`, for
    anything that is wrong; a calibrated one that was interrupted is resumed by the same call, as with `export`.
    """
    recipe, progress = recipe or Recipe(), progress or Silent()
    checkpoint = open_checkpoint(source, adapters, recipe.merge_arithmetic)
    recipe, layout = _choose(form, recipe, checkpoint)
    job = prepare(checkpoint, recipe, frames, f"{form}, decoder only" if decoder_only else form)
    if {scheme for layer in job.formats for scheme, _ in layer.values()} != {SCHEMES[recipe.bits]}:
        raise UsageError(f"--format {form} holds symmetric weights alone: no zero points, no rounded activations")
    check_room(job, out, _fixed_bytes(job))
    with writing(job, out) as writer:
        layers = write_decoder(job, writer, progress)
        write_shards(checkpoint, layers, layout, writer, progress, decoder_only=decoder_only)
        write_settings(checkpoint, layout, writer, decoder_only=decoder_only)
        if not decoder_only:
            open_checkpoint(writer.partial)  # what is published can be read back
        _publish(writer, len(layers))
    return out


def _choose(form: str, recipe: Recipe, checkpoint: Checkpoint) -> tuple[Recipe, Written]:
    """The recipe with a group that fits every linear; UsageError for what the format cannot hold."""
    if form not in WRITTEN:
        raise UsageError(f"--format {form}: choose artifact or one of {sorted(WRITTEN)}")
    if recipe.mixed or recipe.bits not in BITS:
        raise UsageError(f"--format {form} gives all linears the same bits, one of {list(BITS)}: --bits, and no budget")
    if recipe.vision_bits != Recipe.vision_bits:
        raise UsageError(f"--format {form} keeps towers and projector in 16 bits: leave out --vision-bits")
    recipe = follow_source(recipe, checkpoint)
    shapes = checkpoint.config.spec.decoder.linears()
    groups = (recipe.group,) if recipe.group or recipe.bits != 4 else GROUPS
    for group in groups:
        layout = WRITTEN[form](recipe.bits, group)
        if all(layout.fits(shape) for shape in shapes.values()):
            return dataclasses.replace(recipe, group=group), layout
    name, shape = next((name, shape) for name, shape in shapes.items() if not layout.fits(shape))
    tried = f"groups of {' or '.join(map(str, groups))}" if recipe.bits == 4 else "32-bit words"
    raise UsageError(f"--format {form}: {tried} do not fit every matrix, first {name} of (outputs, inputs) {shape}")


def _fixed_bytes(job: Job) -> int:
    """Everything but linears in 16 bits, and the linears a second time while they are packed."""
    spec = job.checkpoint.config.spec
    linears = sum(math.prod(shape) for shape in spec.decoder.linears().values()) * spec.decoder.layers
    everything = sum(math.prod(key.shape) for key in key_table(spec).values())
    return HALF * (everything - linears) + linear_bytes(job.formats, spec)


def _publish(writer: ArtifactWriter, layers: int) -> None:
    """Drop what only the export itself needed, then rename."""
    partial = writer.partial
    try:
        for index in range(layers):
            (partial / layer_file(index)).unlink()
        (partial / layer_file(0)).parent.rmdir()
        shutil.rmtree(partial / SCRATCH)
        (partial / JOURNAL).unlink()
        if not any((partial / JOURNAL).parent.iterdir()):
            (partial / JOURNAL).parent.rmdir()
        sync(partial)
        partial.rename(writer.out)
        sync(writer.out.absolute().parent)
    except OSError as error:
        raise ResourceError(f"cannot publish {writer.out}: {error.strerror}") from error
    writer.pause()  # lets go of the lock
