"""`edge-vla export`: merge, quantise and write an artifact, or a checkpoint for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_vla.errors import UsageError
from edge_vla.options import ARITHMETICS, Adapters, Preprocessing, PromptChoice, StatisticsFile, choice, script
from edge_vla.terminal import err, export_progress, interruptible

if TYPE_CHECKING:
    from edge_vla.data import Frame
    from edge_vla.export import Recipe
    from edge_vla.openvla.evaluation import Preprocess

Source = Annotated[str, typer.Argument(metavar="SRC", help="Checkpoint directory, Hub id, or random:openvla-7b.")]
Out = Annotated[Path, typer.Option("--out", help="Directory to make; must not exist.")]
Bits = Annotated[int | None, typer.Option(help="16, 8, 4, 3 or 2 (default 4).")]
Group = Annotated[int | None, typer.Option(help="Weights per scale; default the largest of 128, 64, 32 that fits.")]
Method = Annotated[
    str | None, typer.Option(help="rtn (default); with --frames also gptq, awq, smoothquant, smoothquant+gptq.")
]
Activations = Annotated[int | None, typer.Option(help="Activation bits: 16 (default), or 8 with --bits 8.")]
Alpha = Annotated[float | None, typer.Option(help="Exponent of awq or smoothquant; searched by default.")]
Asymmetric = Annotated[bool | None, typer.Option("--asymmetric", help="Use zero points, with --bits 4.")]
BitsPerWeight = Annotated[
    float | None, typer.Option("--bpw", help="Mixed precision: at most this many bits per decoder weight; with gptq.")
]
Budget = Annotated[
    str | None, typer.Option(help="Mixed precision, towers included: at most this many bytes (4.2GB); with gptq.")
]
CalibrationFrames = Annotated[int | None, typer.Option(help="Frames to calibrate on (default 128).")]
VisionBits = Annotated[int | None, typer.Option(help="Bits of towers and projector: 16 (default) or 8.")]
Rotate = Annotated[
    bool | None, typer.Option("--rotate", help="Spread outlier channels by a rotation, folded into the weights.")
]
Format = Annotated[str, typer.Option("--format", help="artifact, gptq or compressed-tensors.")]
DecoderOnly = Annotated[bool, typer.Option("--decoder-only", help="Other formats: write the Llama decoder alone.")]
Merge = Annotated[str | None, typer.Option(help="fp32 (default) or upstream.")]
Device = Annotated[str | None, typer.Option(help="Where gptq computes: cpu (default) or cuda.")]
RecipeFile = Annotated[Path | None, typer.Option(help="A TOML recipe; options given here override it.")]
Frames = Annotated[
    Path | None, typer.Option(help="Frames for the golden frame, and with recorded actions for calibration.")
]


def export(
    source: Source,
    out_dir: Out,
    bits: Bits = None,
    group: Group = None,
    method: Method = None,
    activations: Activations = None,
    alpha: Alpha = None,
    asymmetric: Asymmetric = None,
    bpw: BitsPerWeight = None,
    budget: Budget = None,
    calibration_frames: CalibrationFrames = None,
    vision_bits: VisionBits = None,
    rotate: Rotate = None,
    form: Format = "artifact",
    decoder_only: DecoderOnly = False,
    adapter: Adapters = None,
    merge_arithmetic: Merge = None,
    prompt: PromptChoice = None,
    statistics: StatisticsFile = None,
    device: Device = None,
    recipe: RecipeFile = None,
    frames: Frames = None,
    preprocess: Preprocessing = "none",
) -> None:
    """Merge, quantise and export SRC to an artifact, or to a checkpoint that other programs load.

    The same command resumes an export that was killed.
    """
    from edge_vla.data import read_frames
    from edge_vla.export import Recipe
    from edge_vla.export.recipe import METHODS, parse_bytes
    from edge_vla.interop import WRITTEN

    given = {
        "bits": bits,
        "group": group,
        "merge_arithmetic": merge_arithmetic and choice("--merge-arithmetic", merge_arithmetic, ARITHMETICS),
        "method": method and choice("--method", method, METHODS),
        "bits_per_weight": bpw,
        "budget": None if budget is None else parse_bytes(budget),
        "calibration_frames": calibration_frames,
        "vision_bits": vision_bits,
        "activations": activations,
        "alpha": alpha,
        "asymmetric": asymmetric,
        "device": device,
        "rotate": rotate,
    }
    base = Recipe.read(recipe) if recipe else Recipe()
    chosen = replace(base, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    choice("--format", form, ("artifact", *WRITTEN))
    if decoder_only and form == "artifact":
        raise UsageError(f"--decoder-only needs --format {' or '.join(WRITTEN)}: an artifact is a whole policy")
    recorded = read_frames(frames) if frames else ()
    said = Said(prompt, statistics, script(preprocess))
    with interruptible(lambda: _after_interrupt(Path(f"{out_dir}.partial"))):
        made = _write(source, out_dir, form, chosen, adapter or (), recorded, said, decoder_only=decoder_only)
    err.print(f"{out_dir}: {directory_bytes(out_dir) / 1e9:.3f} GB, {form}, {made}")


def _after_interrupt(partial: Path) -> str:
    if partial.exists():
        return f"{partial} keeps what is done; the same command goes on from there"
    return "nothing is kept: the same command starts anew, for only what is calibrated (--method) goes on"


@dataclass(frozen=True)
class Said:
    """What the user says of SRC where the folder cannot tell."""

    prompt: str | None
    statistics: Path | None
    preprocess: Preprocess


def _write(
    source: str,
    out_dir: Path,
    form: str,
    recipe: Recipe,
    adapters: Sequence[Path],
    frames: Sequence[Frame],
    said: Said,
    *,
    decoder_only: bool,
) -> str:
    """Export with a progress display; what was made, in a word or two."""
    from edge_vla.export import export as run_export
    from edge_vla.export.huggingface import export_checkpoint

    with export_progress() as progress:
        if form == "artifact":
            made = run_export(
                source,
                out_dir,
                recipe,
                adapters,
                frames,
                progress,
                prompt=said.prompt,
                statistics=said.statistics,
                preprocess=said.preprocess,
            )
            return made.identity[:12]
        export_checkpoint(
            source,
            out_dir,
            form,
            recipe,
            adapters,
            frames,
            progress,
            decoder_only=decoder_only,
            prompt=said.prompt,
            statistics=said.statistics,
            preprocess=said.preprocess,
        )
        return "decoder alone" if decoder_only else "whole policy"


def directory_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
