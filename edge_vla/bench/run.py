"""Candidates against their reference: agreement with its noise floor, closed loop, speed and memory, in one result.

    frames -> reference and its floors -> each candidate's answers -> agreement -> speed -> episodes -> gates -> result

Every side runs in a process of its own. What was measured is kept when something later fails: a side that breaks is
a row that says why.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from edge_vla.artifact import EVIDENCE, Artifact
from edge_vla.bench import closed_loop, gates, predictions, speed
from edge_vla.bench.agreement import About, Side, compare, compare_candidates, margin_floor
from edge_vla.bench.gates import FLOOR
from edge_vla.bench.plan import FLOAT32, Plan, Reference, synthetic_frames
from edge_vla.bench.rows import empty
from edge_vla.bench.speed import Measured
from edge_vla.bench.systems import Contestant, Station
from edge_vla.bench.worst_frames import worst_frames
from edge_vla.checkpoint import Checkpoint
from edge_vla.checkpoint.keys import HEAD
from edge_vla.data import Frame, read_frames
from edge_vla.device import limits
from edge_vla.errors import EdgeVLAError, ResourceError, UsageError
from edge_vla.files import write_whole
from edge_vla.openvla import ActionTokens, PolicyConfig, Prompter

log = logging.getLogger(__name__)
Tell = Callable[[str], None]

WATERFALL: Final = 50  # actions behind its medians


@dataclass
class Run:
    """One bench as it fills up. `result` is whole after each phase."""

    artifacts: Sequence[Path]
    reference: Reference
    plan: Plan
    scratch: Path
    tell: Tell
    checkpoint: Checkpoint
    directory: Path
    frames: Sequence[Frame]
    files: Sequence[Mapping[str, str]]  # sha256 by name, of base and adapters: hashing 15 GB once is enough
    result: dict[str, Any] = field(default_factory=dict)
    sides: dict[str, Side] = field(default_factory=dict)
    measured: dict[str, Measured] = field(default_factory=dict)

    @property
    def config(self) -> PolicyConfig:
        return self.checkpoint.config

    def names(self) -> dict[str, Path]:
        """Candidates by name."""
        return dict(zip(names_of(self.artifacts), self.artifacts, strict=True))

    def about(self) -> About:
        asked = self.reference.unnorm_key
        keys = [self.config.statistics.resolve(asked or frame.unnorm_key) for frame in self.frames]
        return About.of(self.frames, [self.config.statistics[key] for key in keys])

    def contestants(self) -> dict[str, Contestant]:
        made = {
            name: Contestant(
                name,
                str(path),
                device=self.reference.device,
                vision=self.plan.vision,
                kernel=self.plan.kernel,
                unnorm_key=self.reference.unnorm_key,
            )
            for name, path in self.names().items()
        }
        for peer, python in self.plan.peers:
            made[peer] = self.reference.contestant(
                peer,
                peer=peer,
                python=python,
                calibration=self.plan.peer_frames and str(self.plan.peer_frames.resolve()),
            )
        return made

    def row(self, name: str) -> dict[str, Any]:
        rows = [*self.result["candidates"], *self.result["peers"]]
        return next(row for row in rows if row["name"] == name)


def names_of(artifacts: Sequence[Path]) -> list[str]:
    """Directories' names; two of one name are told apart by their parents."""
    whole = [path.resolve() for path in artifacts]
    plain = [path.name for path in whole]
    return [path.name if plain.count(path.name) == 1 else "/".join(path.parts[-2:]) for path in whole]


def bench(
    artifacts: Sequence[Path], reference: Reference, out: Path, plan: Plan | None = None, tell: Tell = log.info
) -> dict[str, Any]:
    """Measure, judge, and write the reports to `out` after every phase. Returns the result."""
    from edge_vla.bench import reports

    plan = plan or Plan()
    _tell_apart(artifacts, plan)
    checkpoint = reference.checkpoint()
    for path in artifacts:
        check_alike(Artifact(path), checkpoint, reference.source)
    if reference.unnorm_key is not None:
        checkpoint.config.statistics.resolve(reference.unnorm_key)
    if plan.peer_frames is not None:
        read_frames(plan.peer_frames)  # what is wrong with them is said before anything is measured
        if reference.frames is not None and plan.peer_frames.resolve() == reference.frames.resolve():
            raise UsageError(f"--peer-frames {plan.peer_frames}: peers are judged on these; calibrate on others")
    with tempfile.TemporaryDirectory(prefix="edge-vla-bench-") as scratch:
        directory = reference.frames or synthetic_frames(
            Path(scratch) / "frames", checkpoint.config, reference.limit, reference.unnorm_key
        )
        frames = read_frames(directory)[: reference.limit]
        run = Run(artifacts, reference, plan, Path(scratch), tell, checkpoint, directory, frames, checkpoint.identity())
        run.result = empty(run)
        for phase in (_agreement, _speed, _waterfalls, _episodes):
            try:
                phase(run, out)
            finally:
                # What was measured so far is kept, whatever stops the next phase.
                run.result["gates"] = gates.judge(run.result)
                reports.write(run.result, out)
    for name, path in run.names().items():
        if run.row(name)["agreement"] is not None:
            _write_card(reports.model_card(run.result, name), path, tell)
    return run.result


def _tell_apart(artifacts: Sequence[Path], plan: Plan) -> None:
    """Raise UsageError where two sides would have one name."""
    names = [*names_of(artifacts), *(peer for peer, _ in plan.peers), "reference"]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"two sides are called {', '.join(twice)}: give each once, and rename an artifact's directory")


def _write_card(card: str, artifact: Path, tell: Tell) -> None:
    """The model card, in the artifact's `evidence/`, which no hash covers."""
    try:
        (artifact / EVIDENCE).mkdir(exist_ok=True)
        write_whole(artifact / EVIDENCE / "README.md", card)
    except (OSError, ResourceError) as error:
        tell(f"no model card in {artifact / EVIDENCE}: {error}")


def check_alike(artifact: Artifact, checkpoint: Checkpoint, source: str) -> None:
    """Raise UsageError if artifact and reference are not the same network with the same statistics."""
    config = artifact.manifest.config
    if checkpoint.config.spec != config.spec:
        raise UsageError(f"{artifact.directory} and {source} are different networks: compare like with like")
    if set(checkpoint.config.statistics) != set(config.statistics):
        raise UsageError(
            f"{artifact.directory} knows {sorted(config.statistics)}, {source} {sorted(checkpoint.config.statistics)}: "
            "give the reference the adapters that the artifact was made with (--adapter)"
        )


def _agreement(run: Run, out: Path) -> None:  # noqa: ARG001
    """Answers of the reference, its floors, the candidates and those peers that can be asked, then their comparison."""
    if not run.plan.agreement:
        return
    head, action = run.checkpoint.tensors.load(HEAD), run.config.spec.action
    reference = _reference_answers(run)
    run.sides["reference"] = plain = predictions.read_side(reference, head, action)
    contestants = run.contestants()
    asked = {name: (one, run.scratch / f"{index}.npz", None) for index, (name, one) in enumerate(contestants.items())}
    floors = _floors(run)
    new = {name: job for name, job in floors.items() if not job[1].exists()}
    sides = {name: job[0] for name, job in {**new, **asked}.items()}
    many = speed.together(sides, run.config.spec)
    run.tell(f"{', '.join(sides)}: answering {len(run.frames)} frames, {many} at a time")
    jobs = [*new.values(), *asked.values()]
    problems = dict(
        zip(sides, predictions.ask_all(jobs, run.directory, run.reference.limit, reference, many), strict=True)
    )
    about, tokens, floor = run.about(), ActionTokens(action), None
    for name, (_, path, _) in floors.items():
        if (problem := problems.get(name)) is not None:
            raise problem
        shaken = predictions.read_side(path, head, action)
        if name in new and name != "run again":
            predictions.keep(_key(run, name), path)
        floor = margin_floor(plain, shaken) if name == FLOOR else floor
        run.result["floors"][name] = compare(plain, shaken, about, tokens, floor)
    for name, (contestant, path, _) in asked.items():
        row = run.row(name)
        if (problem := problems[name]) is not None:
            run.tell(f"{name}: {problem}")
            row.update({"failed": str(problem)} if contestant.peer is None else {"ran": False, "why_not": str(problem)})
            continue
        run.sides[name] = side = predictions.read_side(path, head, action)
        row["agreement"] = compare(plain, side, about, tokens, floor)
        row["agreement"]["units_off"] = predictions.units_off(path, side, tokens, about.statistics)
        row["worst_frames"] = worst_frames(run.frames, plain, side, tokens, about.statistics)
    peers = {name: run.sides[name] for name, _ in run.plan.peers if name in run.sides}
    for name in run.names():
        if name in run.sides:
            run.row(name)["against_peers"] = {
                peer: compare_candidates(plain, side, run.sides[name], about, tokens) for peer, side in peers.items()
            }


def _floors(run: Run) -> dict[str, tuple[Contestant, Path, str | None]]:
    """Each floor as a job; its file is there already where the cache holds the predictions."""
    jobs: dict[str, tuple[Contestant, Path, str | None]] = {}
    for name in run.plan.floors:
        contestant = run.reference.contestant(name, dtype="fp32" if name == FLOAT32 else "bf16")
        known = None if name == "run again" else predictions.kept(_key(run, name))
        if known is not None:
            run.tell(f"{name}: answered before")
        jobs[name] = (contestant, known or run.scratch / f"floor-{len(jobs)}.npz", name)
    return jobs


def _key(run: Run, floor: str | None) -> str:
    contestant = run.reference.contestant(dtype="fp32" if floor == FLOAT32 else "bf16")
    return predictions.reference_key(
        run.result["reference"]["identity"], contestant, run.result["frames"]["sha256"], floor
    )


def _reference_answers(run: Run) -> Path:
    """The reference's answers, from the cache where nothing they depend on has changed."""
    if (path := predictions.kept(_key(run, None))) is not None:
        run.tell("reference: answered before")
        return path
    path = run.scratch / "reference.npz"
    run.tell(f"reference: answering {len(run.frames)} frames")
    contestant = run.reference.contestant()
    predictions.ask(contestant, run.directory, run.reference.limit, path, None, None)
    predictions.keep(_key(run, None), path)
    return path


def _speed(run: Run, out: Path) -> None:
    """Latency and memory of all sides, in turn."""
    if run.plan.profile == "none":
        return
    asked = {"reference": run.reference.contestant(), **run.contestants()}
    if not run.plan.time_reference:
        del asked["reference"]
    # A peer that does not run in agreement will not run here.
    broken = [row["name"] for row in (*run.result["candidates"], *run.result["peers"]) if not _runs(row)]
    sides = {name: side for name, side in asked.items() if name not in broken}
    for group in speed.groups(sides, list(run.names()), run.config.spec):
        found = speed.measure(
            {name: sides[name] for name in group},
            run.directory,
            run.reference.limit,
            run.plan.profile,
            run.plan.paces_hz,
            run.tell,
        )
        for name, side in found.items():
            row = run.result["reference_measured"] if name == "reference" else run.row(name)
            speed.record(row, side, name, out)
            if isinstance(side, Measured):
                run.measured.setdefault(name, side)
            if isinstance(side, Measured) and name in run.sides:
                row["timed_tokens"] = side.against(run.sides[name].free)
        speed.ratios(run.result, found)
    for row in run.result["candidates"]:
        run.result["notes"] += [f"{row['name']}, {words}" for words in speed.warnings(row)]
    run.tell("measuring what this machine could do at best")
    run.result["limits"] = _limits(run)


def _runs(row: Mapping[str, Any]) -> bool:
    return not row.get("failed") and row.get("why_not") is None


def _waterfalls(run: Run, out: Path) -> None:  # noqa: ARG001
    """Of each candidate alone: where an action's time goes, and how near its stages are to their limits."""
    for name in run.names() if run.plan.waterfall else ():
        row = run.row(name)
        if row.get("failed"):
            continue
        run.tell(f"{name}: looking into {WATERFALL} actions")
        with Station(run.contestants()[name]) as station:
            try:
                station.load(run.directory, run.reference.limit)
                row["waterfall"] = station.waterfall(WATERFALL)
            except EdgeVLAError as error:
                row["failed"] = str(error)


def _limits(run: Run) -> dict[str, Any] | None:
    """What an action of the smallest candidate must cost here, beside what it took."""
    timed = [row for row in run.result["candidates"] if row["latency"] is not None]
    if not timed:
        return None
    row = min(timed, key=lambda row: row["artifact"]["bits_per_weight"])
    manifest = Artifact(run.names()[row["name"]]).manifest
    decoder = limits.stored(manifest.layers)
    device = torch.device("cuda" if torch.cuda.is_available() and run.reference.device != "cpu" else "cpu")
    config = run.config
    prompt = len(Prompter(run.checkpoint.tokenizer_json, config.prompt, config.spec.decoder)(run.frames[0].instruction))
    dims, vision_bits = run.about().statistics[0].dims, manifest.recipe.get("vision_bits", 16)
    passes = limits.costs(config.spec, decoder, prompt, dims, vision_bits=vision_bits)
    stages = {stage["name"]: stage["p50_ms"] for stage in row["latency"][speed.BACK_TO_BACK]["stages"]}
    name = f"{run.result['model']['name']}, {row['name']}"
    return limits.limits(name, passes, limits.measure(config.spec, device, prompt), stages)


def _episodes(run: Run, out: Path) -> None:
    """Paired closed loop of the reference and every candidate."""
    trial = run.plan.trial
    if trial is None:
        return
    made = run.contestants()
    alive = [name for name in run.names() if not run.row(name).get("failed")]
    sides = {"reference": run.reference.contestant(), **{name: made[name] for name in alive}}
    regimes: dict[str, Mapping[str, Sequence[float]] | None] = {closed_loop.LOCK_STEP: None}
    if trial.live and "reference" not in run.measured:
        run.result["notes"].append("no live episodes: the reference could not be timed")
    elif trial.live:
        regimes[closed_loop.LIVE] = {name: run.measured[name].latencies() for name in sides}
    for regime, delays in regimes.items():
        rows = closed_loop.act_all(sides, trial, run.directory, delays, run.tell)
        reference = rows.pop("reference")
        if isinstance(reference, EdgeVLAError):
            raise reference
        if regime == closed_loop.LOCK_STEP:
            run.result["reference_measured"]["closed_loop_rates"] = closed_loop.rates(reference)
        for name, theirs in rows.items():
            if isinstance(theirs, EdgeVLAError):
                run.row(name)["failed"] = str(theirs)
                continue
            empty: dict[str, Any] = {"world": trial.table, "margin": trial.margin, "regimes": {}}
            closed = run.row(name)["closed_loop"] = run.row(name)["closed_loop"] or empty
            closed["regimes"][regime] = closed_loop.verdict(reference, theirs, trial.margin)
        content = {name: these for name, these in {"reference": reference, **rows}.items() if isinstance(these, list)}
        file = out / f"episodes-{regime.replace(' ', '-')}.json"
        write_whole(file, json.dumps(content) + "\n")
