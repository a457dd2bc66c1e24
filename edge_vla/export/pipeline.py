"""Checkpoint -> artifact, one decoder layer at a time: merge, calibrate, round, pack, hash, write.

Memory while weights are written is one layer, or the 16-bit towers; the golden frame then loads the artifact as a
robot would. The directory gets its name only when the manifest is written; whatever goes wrong before that leaves
nothing under it. What a killed export had finished is taken over by the next one that is told the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_vla.artifact import EMBEDDINGS, GRAPH, HEAD, TOKENIZER, VISION, Artifact, Linear, Manifest, widen_vision
from edge_vla.calibration.sets import CalibrationSet, choose
from edge_vla.checkpoint import Checkpoint, TensorSource, open_checkpoint
from edge_vla.checkpoint.keys import DECODER_PREFIX
from edge_vla.checkpoint.keys import EMBEDDINGS as EMBEDDINGS_KEY
from edge_vla.checkpoint.keys import HEAD as HEAD_KEY
from edge_vla.checkpoint.quantised import DequantisedTensors
from edge_vla.data import Frame, synthetic_image
from edge_vla.errors import BackendError, EdgeVLAError, ResourceError, UsageError
from edge_vla.export import budget
from edge_vla.export.decoder import Calibration, Formats, round_layers
from edge_vla.export.duration import expected
from edge_vla.export.golden import MOST_CANDIDATES, choose_golden
from edge_vla.export.preflight import (
    calibration_memory,
    check_disk,
    check_memory,
    linear_bytes,
    scratch_bytes,
)
from edge_vla.export.progress import Progress, Silent
from edge_vla.export.recipe import Recipe
from edge_vla.export.vision import check_graph, export_vision, require_exporter
from edge_vla.export.writer import ArtifactWriter
from edge_vla.openvla import PolicyConfig, Prompter, preprocess
from edge_vla.quant import Scheme, plan, sixteen
from edge_vla.spec import PolicySpec
from edge_vla.version import __version__


@dataclass(frozen=True)
class Job:
    """An export with everything known that can be known before the first byte."""

    checkpoint: Checkpoint
    recipe: Recipe
    frames: Sequence[Frame]
    chosen: CalibrationSet | None
    formats: Formats  # where the bits are not mixed
    form: str = "artifact"

    @cached_property
    def identity(self) -> list[dict[str, str]]:
        return self.checkpoint.identity()

    @cached_property
    def rows(self) -> int:
        """How many rows it is calibrated on."""
        if self.chosen is None:
            return 0
        config = self.checkpoint.config
        prompter = Prompter(self.checkpoint.tokenizer_json, config.prompt, config.spec.decoder)
        lengths = (len(prompter(frame.instruction)) + len(frame.action or ()) for frame in self.chosen.frames)
        return sum(config.spec.patches + length for length in lengths)

    def key(self) -> dict[str, Any]:
        """Everything that decides the bytes: a journal with another key is another export's."""
        environment = {"edge-vla": __version__, "torch": torch.__version__}
        if self.chosen is not None:  # sums depend on how they are split
            environment |= {"threads": str(torch.get_num_threads()), "cpu": torch.backends.cpu.get_cpu_capability()}
        candidates = [frame.sha256() + (frame.unnorm_key or "") for frame in self.frames[:MOST_CANDIDATES]]
        return {
            "source": _provenance(self),
            "recipe": dataclasses.asdict(self.recipe),
            "calibration": None if self.chosen is None else self.chosen.sha256,
            "golden": hashlib.sha256("\n".join(candidates).encode()).hexdigest(),
            "form": self.form,
            **environment,
        }


def export(
    source: str | Path,
    out: Path,
    recipe: Recipe | None = None,
    adapters: Sequence[Path] = (),
    frames: Sequence[Frame] = (),
    progress: Progress | None = None,
) -> Artifact:
    """Make the artifact `out` from `source` with `adapters` merged in order.

    `frames` are candidates for the golden frame, and unless `method` is `rtn` what it is calibrated on; then they need
    recorded actions. Without any, the golden frame is synthetic. Raises a typed error, and leaves nothing under `out`,
    for anything that is wrong with the input, the recipe or the disk. A calibrated export that was interrupted, or
    ran out of disk, leaves `OUT.partial`, and the same call goes on where it stopped.
    """
    recipe, progress = recipe or Recipe(), progress or Silent()
    require_exporter()
    checkpoint = open_checkpoint(source, adapters, recipe.merge_arithmetic)
    job = prepare(checkpoint, recipe, frames)
    check_room(job, out, budget.not_chosen(checkpoint.config.spec, recipe))
    with writing(job, out) as writer:
        return _export(job, writer, progress)


def prepare(checkpoint: Checkpoint, recipe: Recipe, frames: Sequence[Frame], form: str = "artifact") -> Job:
    """Everything that can be wrong with recipe and frames is wrong now, not after hours."""
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise BackendError("--device cuda: torch sees no CUDA device; check nvidia-smi and the torch build")
    recipe = follow_source(recipe, checkpoint)
    formats = [_formats(checkpoint.config.spec, recipe)] * checkpoint.config.spec.decoder.layers
    for frame in frames[:MOST_CANDIDATES]:
        frame.open()
        checkpoint.config.statistics.resolve(frame.unnorm_key or next(iter(checkpoint.config.statistics)))
    return Job(checkpoint, recipe, frames, _calibration(checkpoint, recipe, frames), formats, form)


def follow_source(recipe: Recipe, checkpoint: Checkpoint) -> Recipe:
    """With the group of a source that has 4 bits already, unless told another: its codes may then stay."""
    tensors = checkpoint.tensors
    if recipe.group is None and recipe.bits == 4 and isinstance(tensors, DequantisedTensors):
        return dataclasses.replace(recipe, group=tensors.layout.group)
    return recipe


@contextmanager
def writing(job: Job, out: Path) -> Iterator[ArtifactWriter]:
    """A writer of `out`. What goes wrong leaves nothing, or of a calibrated export what it had finished.

    Only what would end again as it ended now is not worth keeping: an error of ours that more room cannot mend.
    """
    writer = ArtifactWriter(out, job.key())
    try:
        yield writer
    except EdgeVLAError as error:
        _stop(writer, keep=job.chosen is not None and isinstance(error, ResourceError))
        raise
    except BaseException:  # Ctrl-C, or torch's own kind of running out of memory
        _stop(writer, keep=job.chosen is not None)
        raise


def _export(job: Job, writer: ArtifactWriter, progress: Progress) -> Artifact:
    checkpoint, config = job.checkpoint, job.checkpoint.config
    progress.plan(expected(config.spec, job.frames, job.rows, 0 if job.chosen is None else len(job.chosen.frames)))
    layers = write_decoder(job, writer, progress)
    progress.stage("vision", 3)
    if "ends" not in writer.done:
        _write_ends(checkpoint.tensors, config.spec, writer)
        writer.write(TOKENIZER, checkpoint.tokenizer_json.encode("utf-8"))
        writer.finish("ends")
    progress.step("embeddings, head, tokenizer")
    if "vision" not in writer.done:
        export_vision(checkpoint.tensors, config.spec, writer, _vision_bits(job, writer))
        writer.finish("vision")
    progress.step("towers, projector, ONNX graph")
    if "vision check" not in writer.done:
        writer.finish("vision check", _check_vision(writer, config))
    check: Mapping[str, float] = writer.done["vision check"]
    progress.step(f"ONNX against torch: {check['max_difference']:.1e} of {check['max_magnitude']:.1e}")
    manifest = Manifest(
        config=config,
        source=_provenance(job),
        recipe=_told(job, writer),
        layers=tuple(layers),
        vision_check=check,
        golden=(),
    )
    progress.stage("golden frame", 1)
    golden = choose_golden(writer.draft(manifest), job.frames, writer)
    progress.step(f"narrowest lead {min(golden.margins):.2f}, rounding moves {golden.noise:.2f}")
    return writer.publish(dataclasses.replace(manifest, golden=(golden,)))


def write_decoder(job: Job, writer: ArtifactWriter, progress: Progress) -> list[dict[str, Linear]]:
    """Every layer's file, and how its linears are stored."""
    formats = job.formats
    if job.chosen is None:
        return round_layers(job.checkpoint, formats, writer, progress)
    calibration = Calibration(job.checkpoint, job.recipe, job.chosen, writer, progress)
    writer.evidence("calibration.json", json.dumps(job.chosen.manifest(), indent=1))
    damages = calibration.listen()
    if job.recipe.mixed:
        cost = writer.done.get("vision damage")
        spent = budget.spend(job.checkpoint.config.spec, job.recipe, damages, cost)
        if "spent" not in writer.done:
            writer.finish("spent", {"vision_bits": spent.vision_bits})
        writer.evidence("sensitivity.json", json.dumps(spent.report(), indent=1))
        formats = spent.formats
    return calibration.round_layers(formats)


def _stop(writer: ArtifactWriter, *, keep: bool) -> None:
    """Calibrating is hours of work at full size: what is finished of it stays for the next call."""
    if keep and writer.done:
        writer.pause()
    else:
        writer.abandon()


def _formats(spec: PolicySpec, recipe: Recipe) -> dict[str, tuple[Scheme, int | None]]:
    kinds = {Scheme.INT8: Scheme.W8A8} if recipe.rounds_activations else {}
    kinds |= {Scheme.INT4: Scheme.UINT4} if recipe.asymmetric else {}
    planned = {n: plan(recipe.bits, shape[1], recipe.group, n) for n, shape in spec.decoder.linears().items()}
    return {name: (kinds.get(scheme, scheme), group) for name, (scheme, group) in planned.items()}


def _calibration(checkpoint: Checkpoint, recipe: Recipe, frames: Sequence[Frame]) -> CalibrationSet | None:
    if not recipe.calibrated:
        return None
    if not frames:
        raise UsageError(f"--method {recipe.method} needs frames with recorded actions: --frames DIR")
    return choose(frames, checkpoint.config, recipe.calibration_frames, recipe.seed)


def check_room(job: Job, out: Path, fixed: int) -> None:
    """Disk for `fixed` bytes, the linears and what calibrating keeps, and memory, before the first byte.

    An artifact is run when it is written, to answer its golden frame, and that takes about its size.
    """
    spec, recipe = job.checkpoint.config.spec, job.recipe
    need = fixed + (budget.limit(spec, recipe) if recipe.mixed else linear_bytes(job.formats, spec))
    if job.form == "artifact":
        check_memory("running what is exported", need, "close other programs, or fewer --bits")
    if job.chosen is not None:
        need += scratch_bytes(spec, job.rows)
        check_memory(
            "calibrating", calibration_memory(spec, job.rows), "close other programs, or fewer calibration_frames"
        )
    check_disk(out, need)


def _vision_bits(job: Job, writer: ArtifactWriter) -> int:
    """What a budget for everything chose, else what the recipe says."""
    return writer.done.get("spent", {}).get("vision_bits") or job.recipe.vision_bits


def _told(job: Job, writer: ArtifactWriter) -> dict[str, Any]:
    """The recipe, what its budget chose for the towers, and by which frames it was carried out."""
    told = dataclasses.replace(job.recipe, vision_bits=_vision_bits(job, writer)).to_json()
    if job.chosen is not None:
        told["calibration"] = {"frames": len(job.chosen.frames), "sha256": job.chosen.sha256}
    return told


def _write_ends(source: TensorSource, spec: PolicySpec, writer: ArtifactWriter) -> None:
    """The embedding table whole, and of the head only the rows of action ids."""
    writer.save(EMBEDDINGS, {"embed_tokens.weight": sixteen(source.load(EMBEDDINGS_KEY))})
    actions = source.load(HEAD_KEY)[spec.action.first : spec.action.end].clone()
    norm = source.load(DECODER_PREFIX + "norm.weight")
    writer.save(HEAD, {"actions": sixteen(actions), "norm.weight": sixteen(norm)})


def _check_vision(writer: ArtifactWriter, config: PolicyConfig) -> dict[str, float]:
    pixels = preprocess(synthetic_image(0, config.spec.image_size), config.image)[None]
    weights = widen_vision(writer.tensors(VISION), torch.float32)  # as the graph widens them, unrounded
    return check_graph(writer.partial / GRAPH, weights, config.spec, np.ascontiguousarray(pixels))


def _provenance(job: Job) -> dict[str, object]:
    """Hashes, and a name only where it is public: the same weights in another directory give the same manifest."""
    checkpoint = job.checkpoint
    return {
        "origin": "a local directory" if checkpoint.local else checkpoint.origin,
        "adapters": len(checkpoint.adapters),
        "files": job.identity,
    }
