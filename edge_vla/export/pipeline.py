"""Checkpoint -> artifact, one decoder layer at a time: merge, calibrate, quantise, pack, hash, write.

Memory while weights are written is one layer, or the towers; the golden frame then loads the artifact as a
robot would. The directory gets its name only when the manifest is written; an error before that leaves nothing under
the name. What a killed export finished is resumed by the next one with the same arguments.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import torch

from edge_vla.artifact import (
    EMBEDDINGS,
    GRAPH,
    HEAD,
    TOKENIZER,
    VISION,
    Artifact,
    Calibration,
    Manifest,
    RecordedRecipe,
    Source,
    VisionCheck,
    dequantise_vision,
)
from edge_vla.calibration.sets import CalibrationSet, choose
from edge_vla.checkpoint import Checkpoint, open_checkpoint
from edge_vla.checkpoint.keys import DECODER_PREFIX
from edge_vla.checkpoint.keys import EMBEDDINGS as EMBEDDINGS_KEY
from edge_vla.checkpoint.keys import HEAD as HEAD_KEY
from edge_vla.checkpoint.quantised import DequantisedTensors
from edge_vla.checkpoint.rotation import RotatedTensors
from edge_vla.data import Frame, synthetic_image
from edge_vla.errors import BackendError, EdgeVLAError, ResourceError, UsageError
from edge_vla.export.budget import limit, spend
from edge_vla.export.calibrated import CalibratedDecoder
from edge_vla.export.decoder import Linears, round_layers
from edge_vla.export.duration import stage_costs
from edge_vla.export.formats import Formats, same_everywhere
from edge_vla.export.frames import prepared
from edge_vla.export.golden import INSTRUCTIONS, MAX_CANDIDATES, choose_golden
from edge_vla.export.independent import compare
from edge_vla.export.journal import ExportKey
from edge_vla.export.preflight import check_disk, check_memory
from edge_vla.export.progress import Progress, Silent
from edge_vla.export.recipe import Recipe
from edge_vla.export.sizes import calibration_memory, fixed_bytes, linears_bytes, scratch_bytes, vision_bytes
from edge_vla.export.units import RestWritten
from edge_vla.export.vision import check_graph, export_vision, require_exporter
from edge_vla.export.writer import ArtifactWriter
from edge_vla.openvla import Prompter, preprocess
from edge_vla.openvla.evaluation import Preprocess
from edge_vla.quant import sixteen
from edge_vla.sensitivity import FILE as SENSITIVITY_FILE
from edge_vla.version import __version__

ARTIFACT: Final = "artifact"


@dataclass(frozen=True)
class Job:
    """An export with everything known that can be known before the first byte."""

    checkpoint: Checkpoint
    recipe: Recipe
    frames: Sequence[Frame]
    calibration: CalibrationSet | None
    formats: Formats  # unless bits are mixed
    form: str  # `artifact`, or another program's format
    compared: str  # what of prompt and picture was compared with other programs

    @cached_property
    def source(self) -> Source:
        """Names only where they are public: the same weights in another directory give the same manifest."""
        origin = "a local directory" if self.checkpoint.local else self.checkpoint.origin
        return Source(origin, len(self.checkpoint.adapters), tuple(self.checkpoint.identity()))

    @cached_property
    def rows(self) -> int:
        """How many rows it is calibrated on."""
        if self.calibration is None:
            return 0
        config = self.checkpoint.config
        prompter = Prompter(self.checkpoint.tokenizer_json, config.prompt, config.spec.decoder)
        frames = self.calibration.frames
        return sum(config.spec.patches + len(prompter(one.instruction)) + len(one.action or ()) for one in frames)

    def key(self) -> ExportKey:
        candidates = [frame.sha256() + (frame.unnorm_key or "") for frame in self.frames[:MAX_CANDIDATES]]
        return ExportKey(
            source=self.source,
            settings=self.checkpoint.settings_sha256(),
            recipe=self.recipe,
            calibration=self.calibration.sha256 if self.calibration else None,
            golden=hashlib.sha256("\n".join(candidates).encode()).hexdigest(),
            form=self.form,
            edge_vla=__version__,
            torch=torch.__version__,
            threads=torch.get_num_threads() if self.calibration else None,
            cpu=torch.backends.cpu.get_cpu_capability() if self.calibration else None,
        )


def export(
    source: str | Path,
    out: Path,
    recipe: Recipe | None = None,
    adapters: Sequence[Path] = (),
    frames: Sequence[Frame] = (),
    progress: Progress | None = None,
    *,
    prompt: str | None = None,
    statistics: str | Path | None = None,
    preprocess: Preprocess = "none",
) -> Artifact:
    """Make the artifact `out` from `source` with `adapters` merged in order.

    `prompt` and `statistics` replace the source's own, as in `open_checkpoint`.
    `frames` are candidates for the golden frame, and what a calibrated recipe is calibrated on; then they need
    recorded actions. `preprocess` is what an evaluation script does to their pictures first. Without any, the golden
    frame is synthetic. Raises a typed error, and leaves nothing under `out`, for anything that is wrong with the input,
    the recipe or the disk. A calibrated export that was interrupted, or ran out of disk or memory, leaves
    `OUT.partial`, and the same call resumes it.
    """
    recipe, progress = recipe or Recipe(), progress or Silent()
    require_exporter()
    checkpoint = open_checkpoint(source, adapters, recipe.merge_arithmetic, prompt=prompt, statistics=statistics)
    job = prepare(checkpoint, recipe, prepared(frames, preprocess, checkpoint.config.image.size))
    check_resources(job, out, artifact_bytes(job))
    with writing(job, out) as writer:
        progress.opened(checkpoint.reading)
        progress.plan(stage_costs(job.checkpoint.config.spec, len(frames), job.rows, job.calibration))
        layers, vision_bits = write_decoder(job, writer, progress)
        check = write_rest(job, writer, vision_bits, progress)
        manifest = describe(job, layers, vision_bits, check)
        progress.stage("golden frame", 1)
        golden = choose_golden(writer.draft(manifest), job.frames, writer)
        progress.step(f"narrowest margin {min(golden.margins):.2f}, rounding noise {golden.noise:.2f}; {job.compared}")
        writer.draft(dataclasses.replace(manifest, golden=(golden,)))
        writer.publish()
    return Artifact(out)


def prepare(checkpoint: Checkpoint, recipe: Recipe, frames: Sequence[Frame], form: str = ARTIFACT) -> Job:
    """Everything that can be wrong with recipe and frames is wrong now, not after hours."""
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise BackendError("--device cuda: torch sees no CUDA device; check nvidia-smi and the torch build")
    if recipe.rotate:
        turned = RotatedTensors(checkpoint.tensors, checkpoint.config.spec, recipe.seed)
        checkpoint = dataclasses.replace(checkpoint, tensors=turned)
    recipe = follow_source(recipe, checkpoint)
    formats = same_everywhere(checkpoint.config.spec.decoder, recipe)
    for frame in frames[:MAX_CANDIDATES]:
        frame.open()
        checkpoint.config.statistics.resolve(frame.unnorm_key or next(iter(checkpoint.config.statistics)))
    if recipe.calibrated and not frames:
        raise UsageError(f"--method {recipe.method} needs frames with recorded actions: --frames DIR")
    chosen = choose(frames, checkpoint.config, recipe.calibration_frames, recipe.seed) if recipe.calibrated else None
    candidates = frames[:MAX_CANDIDATES]
    image = candidates[0].open() if candidates else synthetic_image(0, checkpoint.config.spec.image_size)
    compared = compare(checkpoint, [frame.instruction for frame in candidates] or INSTRUCTIONS, image)
    return Job(checkpoint, recipe, frames, chosen, formats, form, compared)


def follow_source(recipe: Recipe, checkpoint: Checkpoint) -> Recipe:
    """With the group of a source that is 4-bit already, unless the recipe has one: its codes can then stay."""
    tensors = checkpoint.tensors
    if recipe.group is None and recipe.bits == 4 and isinstance(tensors, DequantisedTensors):
        return dataclasses.replace(recipe, group=tensors.layout.group)
    return recipe


def artifact_bytes(job: Job) -> int:
    """The size of the artifact, at most, about."""
    spec, recipe = job.checkpoint.config.spec, job.recipe
    linears = limit(spec, recipe) if recipe.mixed else linears_bytes(spec.decoder, job.formats)
    vision = 0 if recipe.chooses_vision_bits else vision_bytes(spec, recipe.vision_bits)  # else it is in the limit
    return fixed_bytes(spec) + vision + linears


def check_resources(job: Job, out: Path, size: int) -> None:
    """ResourceError without the disk and memory for an output of `size` bytes, and for calibrating.

    An artifact is run when it is written, to act on its golden frame, and that takes about its size.
    """
    decoder = job.checkpoint.config.spec.decoder
    if job.form == ARTIFACT:
        check_memory("running the exported policy", size, "close other programs, or use fewer --bits")
    if job.calibration is not None:
        need = calibration_memory(decoder, job.rows)
        check_memory("calibrating", need, "close other programs, or use fewer --calibration-frames")
        size += scratch_bytes(decoder, job.rows)
    check_disk(out, size)


@contextmanager
def writing(job: Job, out: Path) -> Iterator[ArtifactWriter]:
    """A writer of `out`. An error leaves nothing, or of a calibrated export what it had finished.

    Calibrating a full-size model takes hours. But most errors of ours would come again: they leave nothing.
    """
    writer = ArtifactWriter(out, job.key())
    try:
        yield writer
    except BaseException as error:  # Ctrl-C too, and torch's own kind of running out of memory
        curable = isinstance(error, ResourceError) or not isinstance(error, EdgeVLAError)
        if curable and job.calibration is not None and writer.resumable:
            writer.release()
        else:
            writer.abandon()
        raise


def write_decoder(job: Job, writer: ArtifactWriter, progress: Progress) -> tuple[list[Linears], int]:
    """Every layer's file: how its linears are stored, and the bits that towers and projector are to have."""
    recipe, formats, vision_bits = job.recipe, job.formats, job.recipe.vision_bits
    if job.calibration is None:
        return round_layers(job.checkpoint, formats, writer, progress), vision_bits
    decoder = CalibratedDecoder(job.checkpoint, recipe, job.calibration, writer, progress)
    decoder.calibrate()
    if recipe.mixed:
        spending = spend(job.checkpoint.config.spec, recipe, decoder.kl_costs(), decoder.vision_kl_cost())
        writer.write_evidence(SENSITIVITY_FILE, spending.report.to_json())
        formats, vision_bits = spending.formats, spending.vision_bits or vision_bits
    return decoder.quantise(formats), vision_bits


def write_rest(job: Job, writer: ArtifactWriter, vision_bits: int, progress: Progress) -> VisionCheck:
    """Everything but the decoder, and how the ONNX graph compares with torch."""
    progress.stage("vision", 3)
    if (unit := writer.get(RestWritten)) is None:
        write_ends(job, writer)
        progress.step("embeddings, head, tokenizer")
        export_vision(job.checkpoint.tensors, job.checkpoint.config.spec, writer, vision_bits)
        progress.step("towers, projector, ONNX graph")
        unit = writer.finish(RestWritten(check=check_vision(job, writer)))
        progress.step(f"ONNX against torch: {unit.check.max_difference:.1e} of {unit.check.max_magnitude:.1e}")
    return unit.check


def write_ends(job: Job, writer: ArtifactWriter) -> None:
    """The whole embedding table, of the head only the rows of action ids, and the tokenizer."""
    tensors, action = job.checkpoint.tensors, job.checkpoint.config.spec.action
    writer.save(EMBEDDINGS, {"embed_tokens.weight": sixteen(tensors.load(EMBEDDINGS_KEY))})
    actions = tensors.load(HEAD_KEY)[action.first : action.end].clone()
    norm = tensors.load(DECODER_PREFIX + "norm.weight")
    writer.save(HEAD, {"actions": sixteen(actions), "norm.weight": sixteen(norm)})
    writer.write(TOKENIZER, job.checkpoint.tokenizer_json.encode("utf-8"))


def check_vision(job: Job, writer: ArtifactWriter) -> VisionCheck:
    """The ONNX graph beside torch on one synthetic image; ArtifactError where they differ."""
    config = job.checkpoint.config
    pixels = preprocess(synthetic_image(0, config.spec.image_size), config.image)[None]
    weights = dequantise_vision(writer.tensors(VISION), torch.float32)  # as the graph does, unrounded
    return check_graph(writer.partial / GRAPH, weights, config.spec, np.ascontiguousarray(pixels))


def describe(job: Job, layers: Sequence[Linears], vision_bits: int, check: VisionCheck) -> Manifest:
    """The manifest but for the golden frame and the files. The recipe has the bits that a budget chose for vision."""
    frames, recipe = job.calibration, dataclasses.replace(job.recipe, vision_bits=vision_bits).resolved()
    calibration = None if frames is None else Calibration(len(frames.frames), frames.sha256)
    return Manifest(
        config=job.checkpoint.config,
        source=job.source,
        recipe=RecordedRecipe(**dataclasses.asdict(recipe), calibration=calibration),
        layers=tuple(layers),
        vision_check=check,
    )
