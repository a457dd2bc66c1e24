"""A bench before anything is measured: its inputs are checked, and the result holds a row for each system."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edge_vla.artifact import Artifact
from edge_vla.bench import gates, predictions
from edge_vla.bench.agreement import Predictions
from edge_vla.bench.environments import resolve
from edge_vla.bench.leakage import calibration_leakage
from edge_vla.bench.messages import System
from edge_vla.bench.motion import FrameFacts
from edge_vla.bench.peers import PEERS
from edge_vla.bench.place import Here, Place
from edge_vla.bench.plan import Plan, ReferencePlan, synthetic_frames
from edge_vla.bench.provenance import provenance
from edge_vla.bench.result import ArtifactFacts, Candidate, FrameSet, Model, Peer, Reference, Result
from edge_vla.bench.speed import Measured
from edge_vla.checkpoint import Checkpoint
from edge_vla.data import Frame, check_pictures, check_recorded, read_frames
from edge_vla.device import limits
from edge_vla.device.sensors import device_state
from edge_vla.errors import EdgeVLAWarning, UsageError
from edge_vla.openvla import PolicyConfig
from edge_vla.sensitivity import SensitivityReport

REFERENCE = "reference"


@dataclass
class Run:
    """One bench as it fills up. `result` is whole after each phase."""

    artifacts: Mapping[str, Artifact]
    plan: Plan
    reference: ReferencePlan
    checkpoint: Checkpoint
    directory: Path  # of the frames
    frames: Sequence[Frame]
    facts: FrameFacts
    scratch: Path
    on_progress: Callable[[str], None]
    place: Place = field(default_factory=Here)
    result: Result = field(init=False)
    predictions: dict[str, Predictions] = field(default_factory=dict)
    measured: dict[str, Measured] = field(default_factory=dict)

    @property
    def config(self) -> PolicyConfig:
        return self.checkpoint.config

    def systems(self) -> dict[str, System]:
        """Candidates, then peers, by name."""
        candidates = {
            name: System(
                name,
                str(artifact.directory),
                device=self.reference.device,
                vision=self.plan.vision,
                kernel=self.plan.kernel,
                unnorm_key=self.reference.unnorm_key,
                preprocess=self.reference.preprocess,
            )
            for name, artifact in self.artifacts.items()
        }
        frames = None if self.plan.peer_frames is None else str(self.plan.peer_frames.resolve())
        peers = {
            peer: replace(self.reference.system(peer), peer=peer, python=python, calibration=frames)
            for peer, python in self.plan.peers
        }
        return candidates | peers


def start(
    artifacts: Sequence[Path], reference: ReferencePlan, plan: Plan, scratch: Path, on_progress: Callable[[str], None]
) -> Run:
    """Check everything that can be wrong before the first measurement, and open it. Raises EdgeVLAError."""
    named = _named(artifacts, plan)
    checkpoint = reference.checkpoint()
    for doubt in checkpoint.reading.doubts:
        warnings.warn(doubt, EdgeVLAWarning, 3)
    opened = {name: Artifact(path) for name, path in named.items()}
    for artifact in opened.values():
        _check_comparable(artifact, checkpoint, reference.source)
    if reference.unnorm_key is not None:
        checkpoint.config.statistics.resolve(reference.unnorm_key)
    if plan.closed_loop is not None:
        resolve(plan.closed_loop.environment)
    if plan.peer_frames is not None:
        read_frames(plan.peer_frames)
        if reference.frames is not None and plan.peer_frames.resolve() == reference.frames.resolve():
            raise UsageError(f"--peer-frames {plan.peer_frames}: peers are measured on these; calibrate on others")
    directory = reference.frames or synthetic_frames(
        scratch / "frames", checkpoint.config, reference.limit, reference.unnorm_key
    )
    frames = read_frames(directory)[: reference.limit]
    statistics = checkpoint.config.statistics
    keys = [statistics.resolve(reference.unnorm_key or frame.unnorm_key) for frame in frames]
    check_recorded(frames, keys, statistics)
    check_pictures(frames)
    facts = FrameFacts.of(frames, [statistics[key] for key in keys])
    run = Run(opened, plan, reference, checkpoint, directory, frames, facts, scratch, on_progress)
    run.result = _empty(run)
    return run


def _named(artifacts: Sequence[Path], plan: Plan) -> dict[str, Path]:
    """Artifacts by their directory's name, two of one name with their parents' too. Raises UsageError."""
    paths = [path.resolve() for path in artifacts]
    plain = [path.name for path in paths]
    names = [path.name if plain.count(path.name) == 1 else "/".join(path.parts[-2:]) for path in paths]
    taken = [*names, *(peer for peer, _ in plan.peers), REFERENCE]
    if twice := sorted({name for name in taken if taken.count(name) > 1}):
        raise UsageError(
            f"two systems are called {', '.join(twice)}: name each once, or rename an artifact's directory"
        )
    return dict(zip(names, artifacts, strict=True))


def _check_comparable(artifact: Artifact, checkpoint: Checkpoint, source: str) -> None:
    """Raise UsageError if artifact and reference are not the same network with the same statistics."""
    config = artifact.manifest.config
    if checkpoint.config.spec != config.spec:
        raise UsageError(
            f"{artifact.directory} and {source} are different networks: give the checkpoint it was made from"
        )
    ours, theirs = config.prompt.value, checkpoint.config.prompt.value
    if ours != theirs:
        raise UsageError(
            f"{artifact.directory} has the prompt {ours!r}, {source} {theirs!r}: give the reference --prompt {ours}"
        )
    if set(checkpoint.config.statistics) != set(config.statistics):
        raise UsageError(
            f"{artifact.directory} has the statistics {sorted(config.statistics)}, {source} "
            f"{sorted(checkpoint.config.statistics)}: give the reference the artifact's adapters (--adapter), or its "
            "--statistics"
        )


def _empty(run: Run) -> Result:
    files, plan = run.checkpoint.identity(), run.plan  # hashes up to 15 GB: once
    source, given = Path(run.reference.source).name, run.reference.frames is not None
    model = plan.model or source
    return Result(
        name=plan.title or f"{', '.join(run.artifacts)} against {model}",
        model=Model(name=model, scope=f"These figures are about {model} and no other model."),
        provenance=provenance(device_state()),
        frames=FrameSet(
            source="given" if given else "synthetic",
            name=run.directory.name if given else "synthetic",
            count=len(run.frames),
            episodes=len(set(run.facts.episodes)),
            sha256=predictions.frames_hash(run.frames),
            by_phase=dict(Counter(run.facts.phase)),
            preprocess=run.reference.preprocess,
        ),
        reference=Reference(
            name=source,
            adapters=[Path(adapter).name for adapter in run.reference.adapters],
            identity=predictions.identity(files, run.checkpoint),
            dtype="bf16",
        ),
        gates_declared=gates.declared(plan.closed_loop),
        candidates=[
            Candidate(name=name, artifact=_facts_of(artifact, run)) for name, artifact in run.artifacts.items()
        ],
        peers=[Peer(name=peer, description=PEERS[peer].described(plan.peer_frames)) for peer, _ in plan.peers],
        notes=[*_notes(run, files)],
    )


def _notes(run: Run, files: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """What a reader must know before the first figure."""
    yield from run.checkpoint.reading.doubts
    limit, count = run.reference.limit, len(run.frames)
    if limit and limit > count:
        yield f"{limit} frames were requested, the folder has {count}"
    acted = sum(frame.action is not None for frame in run.frames)
    if 0 < acted < count:
        yield f"{count - acted} of {count} frames have no recorded action: none is compared with recorded actions"
    for name, artifact in run.artifacts.items():
        if artifact.manifest.source.files != tuple(map(dict, files)):
            yield f"{name} was made from other files than this reference: another policy, or a merged copy of it"


def _facts_of(artifact: Artifact, run: Run) -> ArtifactFacts:
    manifest = artifact.manifest
    linears = [linear for layer in manifest.layers for linear in layer.values()]
    weights = sum(linear.shape[0] * linear.shape[1] for linear in linears)
    return ArtifactFacts(
        name=artifact.directory.resolve().name,
        identity=artifact.identity,
        recipe=manifest.recipe.to_json(),
        disk_bytes=sum(record.size for record in manifest.files.values()),
        bits_per_weight=round(8 * limits.stored(manifest.layers) / weights, 3),
        calibration_leakage=calibration_leakage(artifact, run.frames, run.config),
        sensitivity=SensitivityReport.read(artifact.directory),
    )
