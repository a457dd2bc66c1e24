"""Checkpoint -> a Hugging Face directory that other programs load: GPTQ or compressed-tensors.

The decoder's linears are quantised exactly as for an artifact, then packed as the format wants them; everything else
stays in 16 bits under its own names. Like an artifact, the directory gets its name only when it is complete.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from edge_vla.artifact import layer_file
from edge_vla.checkpoint import Checkpoint, key_table, open_checkpoint
from edge_vla.data import Frame
from edge_vla.errors import UsageError
from edge_vla.export.frames import prepared
from edge_vla.export.journal import JOURNAL
from edge_vla.export.pipeline import Job, check_resources, follow_source, prepare, write_decoder, writing
from edge_vla.export.progress import Progress, Silent
from edge_vla.export.recipe import Recipe
from edge_vla.export.settings import write_settings
from edge_vla.export.shards import write_shards
from edge_vla.export.sizes import BF16_BYTES, linear_weights, linears_bytes
from edge_vla.interop import WRITTEN, Written
from edge_vla.interop.integers import BITS, SCHEMES
from edge_vla.openvla.evaluation import Preprocess
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
    prompt: str | None = None,
    statistics: str | Path | None = None,
    preprocess: Preprocess = "none",
) -> Path:
    """Make the directory `out` in the format `form`, `gptq` or `compressed-tensors`, from `source`.

    Symmetric: 4 bits in groups of one size, or 8 bits with one scale for each output. With `decoder_only` it holds a
    plain Llama, for programs that know no OpenVLA. Raises a typed error, and leaves nothing under `out`, for anything
    that is wrong; a calibrated export that was interrupted is resumed by the same call, as with `export`.
    """
    recipe, progress = recipe or Recipe(), progress or Silent()
    if recipe.rotate and decoder_only:
        raise UsageError("--rotate turns the projector too, and --decoder-only leaves it out: give one of them")
    checkpoint = open_checkpoint(source, adapters, recipe.merge_arithmetic, prompt=prompt, statistics=statistics)
    recipe, layout = _choose(form, recipe, checkpoint)
    shown = prepared(frames, preprocess, checkpoint.config.image.size)
    job = prepare(checkpoint, recipe, shown, f"{form}, decoder only" if decoder_only else form)
    if {scheme for layer in job.formats for scheme, _ in layer.values()} != {SCHEMES[recipe.bits]}:
        raise UsageError(f"--format {form} holds symmetric weights only: leave out --asymmetric and --activations")
    check_resources(job, out, _peak_bytes(job))
    with writing(job, out) as writer:
        progress.opened(checkpoint.reading)
        layers, _ = write_decoder(job, writer, progress)
        write_shards(job.checkpoint, layers, layout, writer, progress, decoder_only=decoder_only)
        write_settings(job.checkpoint, layout, writer, decoder_only=decoder_only)
        if not decoder_only:
            open_checkpoint(writer.partial)  # what is published can be read back
        writer.publish(without=[JOURNAL, *map(layer_file, range(len(layers)))])
    return out


def _choose(form: str, recipe: Recipe, checkpoint: Checkpoint) -> tuple[Recipe, Written]:
    """The recipe with a group that fits every linear, and the layout; UsageError for what the format cannot hold."""
    if form not in WRITTEN:
        raise UsageError(f"--format {form}: choose artifact or one of {sorted(WRITTEN)}")
    if recipe.mixed or recipe.bits not in BITS:
        raise UsageError(
            f"--format {form} stores all linears in the same bits, one of {list(BITS)}: --bits, and no budget"
        )
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
    raise UsageError(
        f"--format {form}: {tried} do not fit every matrix, first {name} of (out_features, in_features) {shape}: "
        "choose another --group, --bits or --format"
    )


def _peak_bytes(job: Job) -> int:
    """Everything but linears in 16 bits, and the linears twice: while they are packed."""
    spec = job.checkpoint.config.spec
    everything = sum(math.prod(key.shape) for key in key_table(spec).values())
    return BF16_BYTES * (everything - linear_weights(spec.decoder)) + 2 * linears_bytes(spec.decoder, job.formats)
