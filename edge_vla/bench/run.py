"""Candidates against their reference: agreement with its noise floor, closed loop, speed and memory, in one result.

    frames -> predictions of reference, floors and candidates -> agreement -> speed -> episodes -> gates -> result

Every system runs in a process of its own. What was measured is kept when something later fails: a system that breaks
is a row that says why.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import torch

from edge_vla.artifact import EVIDENCE, Artifact, int8_prefill
from edge_vla.artifact.int8_prefill import Int8Prefill
from edge_vla.bench import closed_loop, gates, predictions, reports, speed
from edge_vla.bench.agreement import compare, compare_candidates, margin_floor
from edge_vla.bench.environments import resolve
from edge_vla.bench.int8_prefill import verdict
from edge_vla.bench.place import Place
from edge_vla.bench.plan import FLOAT32, NO_PROFILE, REPEAT, Plan, ReferencePlan
from edge_vla.bench.predictions import Job
from edge_vla.bench.result import (
    ROUNDING_NOISE,
    Candidate,
    ClosedLoop,
    EpisodeRow,
    Peer,
    Performance,
    Reference,
    Result,
    Samples,
)
from edge_vla.bench.speed import Measured
from edge_vla.bench.start import REFERENCE, Run, start
from edge_vla.bench.systems import WorkerProcess
from edge_vla.bench.worst_frames import worst_frames
from edge_vla.checkpoint.keys import HEAD
from edge_vla.device import limits
from edge_vla.device.limits import Limits
from edge_vla.errors import EdgeVLAError, ResourceError, UsageError
from edge_vla.files import write_whole
from edge_vla.openvla import ActionTokens, Prompter
from edge_vla.runtime.kernels import NATIVE_INT8

log = logging.getLogger(__name__)
OnProgress = Callable[[str], None]

PROFILED_ACTIONS: Final = 50


def bench(
    artifacts: Sequence[Path],
    reference: ReferencePlan,
    out: Path,
    plan: Plan | None = None,
    on_progress: OnProgress = log.info,
    place: Place | None = None,
    *,
    overwrite: bool = False,
) -> Result:
    """Measure, check the gates, and write the reports to `out` after every phase.

    `place`: where frames are predicted and episodes run; what is timed is timed here. UsageError if `out` holds an
    earlier bench, unless it is to be overwritten: then its files go when this one's inputs are found to be sound.
    """
    require_free(out, overwrite)
    with tempfile.TemporaryDirectory(prefix="edge-vla-bench-") as scratch:
        run = start(artifacts, reference, plan or Plan(), Path(scratch), on_progress)
        run.place = place or run.place
        for path in reports.left_behind(out):
            path.unlink()
        for phase in (_agreement, _speed, _stage_profiles, _episodes):
            try:
                phase(run, out)
            finally:
                # What was measured so far is kept, whatever stops the next phase.
                run.result.gates = gates.check(run.result)
                reports.write(run.result, out)
    for row in run.result.candidates:
        if row.agreement is not None:
            _write_card(reports.model_card(run.result, row.name), run.artifacts[row.name], on_progress)
            _write_verdict(verdict(run.result, row, run.artifacts[row.name]), run.artifacts[row.name], on_progress)
    return run.result


def require_free(out: Path, overwrite: bool) -> None:
    """UsageError if `out` is no directory to write to: a file, or the place of an earlier bench."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file: name a directory")
    if not overwrite and (found := reports.left_behind(out)):
        raise UsageError(f"--out {out} holds a bench already ({found[-1].name}): name another, or add --overwrite")


def _write_card(card: str, artifact: Artifact, on_progress: OnProgress) -> None:
    """The model card, in the artifact's `evidence/`, which no hash covers."""
    folder = artifact.directory / EVIDENCE
    try:
        folder.mkdir(exist_ok=True)
        write_whole(folder / "README.md", card)
    except (OSError, ResourceError) as error:
        on_progress(f"no model card in {folder}: {error}")


def _write_verdict(found: Int8Prefill | None, artifact: Artifact, on_progress: OnProgress) -> None:
    """What `auto` goes by from now on, where rows of 8 bits in the prefill were measured."""
    if found is None:
        return
    try:
        int8_prefill.write(artifact, found)
    except (OSError, ResourceError) as error:
        on_progress(f"{NATIVE_INT8} is not recorded in {artifact.directory}: {error}")
        return
    on_progress(
        f"auto {'runs' if found.passed else 'does not run'} {NATIVE_INT8} with {artifact.directory}: {found.why}"
    )


def _agreement(run: Run, out: Path) -> None:  # noqa: ARG001
    """Predictions of the reference, its floors, the candidates and the peers, then their comparison."""
    if not run.plan.agreement:
        return
    reference = _reference_predictions(run)
    systems = {name: Job(one, run.scratch / f"{index}.npz") for index, (name, one) in enumerate(run.systems().items())}
    floors = _floor_jobs(run)
    jobs = {name: job for name, job in floors.items() if not job.file.exists()} | systems
    parallel = speed.parallel({name: job.system for name, job in jobs.items()}, run.config.spec)
    run.on_progress(f"{', '.join(jobs)}: predicting {len(run.frames)} frames, {parallel} at a time")
    errors = run.place.predict_all([*jobs.values()], run.directory, run.reference.limit, reference, parallel)
    failed = {name: error for name, error in zip(jobs, errors, strict=True) if error is not None}
    _compare(run, reference, floors, systems, failed)


def _reference_predictions(run: Run) -> Path:
    """The file of the reference's predictions, from the cache where nothing they depend on has changed."""
    job = Job(run.reference.system(), run.scratch / "reference.npz")
    if (path := predictions.cached(_cache_key(run, job))) is not None:
        run.on_progress(f"{REFERENCE}: predictions are cached")
        return path
    run.on_progress(f"{REFERENCE}: predicting {len(run.frames)} frames")
    (error,) = run.place.predict_all([job], run.directory, run.reference.limit, None, 1)
    if error is not None:
        raise error
    predictions.store(_cache_key(run, job), job.file)
    return job.file


def _floor_jobs(run: Run) -> dict[str, Job]:
    """A job for each floor; its file exists already where the cache holds the predictions."""
    jobs = {}
    for index, name in enumerate(run.plan.floors):
        system = run.reference.system(name)
        if name == FLOAT32:
            system = dataclasses.replace(system, dtype="fp32")
        job = Job(system, run.scratch / f"floor-{index}.npz", name)
        if name != REPEAT and (path := predictions.cached(_cache_key(run, job))) is not None:
            run.on_progress(f"{name}: predictions are cached")
            job = dataclasses.replace(job, file=path)
        jobs[name] = job
    return jobs


def _cache_key(run: Run, job: Job) -> str:
    weights, settings = run.result.reference.identity, run.checkpoint.settings_sha256()
    return predictions.cache_key(weights, settings, job.system, run.result.frames.sha256, job.floor)


def _compare(
    run: Run,
    reference: Path,
    floors: Mapping[str, Job],
    systems: Mapping[str, Job],
    failed: Mapping[str, EdgeVLAError],
) -> None:
    head, action = run.checkpoint.tensors.load(HEAD), run.config.spec.action
    tokens, facts, margin = ActionTokens(action), run.facts, None
    plain = run.predictions[REFERENCE] = predictions.read(reference, head, action)
    for name, job in floors.items():
        if name in failed:
            raise failed[name]
        changed = predictions.read(job.file, head, action)
        if name != REPEAT and job.file.is_relative_to(run.scratch):
            predictions.store(_cache_key(run, job), job.file)
        margin = margin_floor(plain, changed) if name == ROUNDING_NOISE else margin
        run.result.floors[name] = compare(plain, changed, facts, tokens, margin)
    for name, job in systems.items():
        row = run.result.row(name)
        if name in failed:
            row.failed = str(failed[name])
            run.on_progress(f"{name}: {row.failed}")
            continue
        own = run.predictions[name] = predictions.read(job.file, head, action)
        row.agreement = compare(plain, own, facts, tokens, margin)
        row.units_off = predictions.units_off(job.file, own, tokens, facts.statistics)
        row.worst_frames = worst_frames(run.frames, plain, own, tokens, facts.statistics)
    peers = {row.name: run.predictions[row.name] for row in run.result.peers if row.name in run.predictions}
    for candidate in run.result.candidates:
        if (own_predictions := run.predictions.get(candidate.name)) is not None:
            candidate.against_peers = {
                peer: compare_candidates(plain, theirs, own_predictions, facts, tokens)
                for peer, theirs in peers.items()
            }


def _speed(run: Run, out: Path) -> None:
    """Latency and memory of all systems, in turns."""
    if run.plan.profile == NO_PROFILE:
        return
    rows = _rows(run.result)
    systems = {REFERENCE: run.reference.system(), **run.systems()}
    if not run.plan.time_reference:
        del systems[REFERENCE]
    # A peer that does not run in agreement will not run here.
    systems = {name: system for name, system in systems.items() if rows[name].failed is None}
    for group in speed.groups(systems, list(run.artifacts), run.config.spec):
        found = speed.measure(
            {name: systems[name] for name in group},
            run.directory,
            run.reference.limit,
            run.plan.profile,
            run.plan.paces_hz,
            run.on_progress,
        )
        for name, measured in found.items():
            _record(run, rows[name], name, measured, out)
        _record_ratios(run.result, found)
    for row in run.result.candidates:
        run.result.notes += [f"{row.name}, {warning}" for warning in speed.warnings(row.performance)]
    run.on_progress("measuring this machine's ceilings")
    run.result.limits = _limits(run)


def _rows(result: Result) -> dict[str, Reference | Candidate | Peer]:
    named: list[Candidate | Peer] = [*result.candidates, *result.peers]
    return {REFERENCE: result.reference, **{row.name: row for row in named}}


def _record(run: Run, row: Reference | Candidate | Peer, name: str, measured: Measured | str, out: Path) -> None:
    """Enter one system in its row; one that was measured with an earlier partner keeps that."""
    if isinstance(measured, str):
        row.failed = measured
    elif name not in run.measured:
        run.measured[name] = measured
        speed.record(row.performance, measured, name, out)
        if name in run.predictions:
            row.performance.timed_tokens = measured.timed_tokens(run.predictions[name].free)
        if isinstance(row, Peer):
            row.versions = dict(measured.loaded.versions)


def _record_ratios(result: Result, found: Mapping[str, Measured | str]) -> None:
    """How much faster each candidate is than each of the others that it took turns with."""
    others: dict[str, Performance] = {REFERENCE: result.reference.performance}
    others |= {row.name: row.performance for row in result.peers}
    for candidate in result.candidates:
        ours = found.get(candidate.name)
        for name, performance in others.items():
            theirs = found.get(name)
            if not (isinstance(ours, Measured) and isinstance(theirs, Measured)):
                continue
            if (ratio := speed.ratio(ours, theirs)) is not None:
                performance.ratio_to[candidate.name] = ratio


def _limits(run: Run) -> Limits | None:
    """What an action of the smallest timed candidate must cost here at least, beside what it took."""
    timed = [row for row in run.result.candidates if row.performance.back_to_back is not None]
    if not timed:
        return None
    row = min(timed, key=lambda row: row.artifact.bits_per_weight)
    manifest, config = run.artifacts[row.name].manifest, run.config
    device = torch.device("cuda" if torch.cuda.is_available() and run.reference.device != "cpu" else "cpu")
    prompter = Prompter(run.checkpoint.tokenizer_json, config.prompt, config.spec.decoder)
    prompt = len(prompter(run.frames[0].instruction))
    passes = limits.costs(
        config.spec,
        limits.stored(manifest.layers),
        prompt,
        run.facts.statistics[0].dims,
        vision_bits=manifest.recipe.vision_bits,
    )
    assert row.performance.back_to_back
    stages = {stage.name: stage.p50_ms for stage in row.performance.back_to_back.stages}
    ceilings = limits.measure(config.spec, device, prompt)
    return limits.limits(f"{run.result.model.name}, {row.name}", passes, ceilings, stages)


def _stage_profiles(run: Run, out: Path) -> None:  # noqa: ARG001
    """Of each candidate alone: where an action's time goes, and how near its stages are to their limits."""
    systems = run.systems()
    for row in run.result.candidates if run.plan.stage_profile else ():
        if row.failed is not None:
            continue
        run.on_progress(f"{row.name}: profiling {PROFILED_ACTIONS} actions")
        with WorkerProcess(systems[row.name]) as process:
            try:
                process.load(run.directory, run.reference.limit)
                row.stage_profile = process.stage_profile(PROFILED_ACTIONS)
            except EdgeVLAError as error:
                row.failed = str(error)


def _episodes(run: Run, out: Path) -> None:
    """Paired closed loop of the reference and every candidate."""
    plan = run.plan.closed_loop
    if plan is None:
        return
    environment, systems = resolve(plan.environment), run.systems()
    alive = [row for row in run.result.candidates if row.failed is None]
    systems = {REFERENCE: run.reference.system(), **{row.name: systems[row.name] for row in alive}}
    regimes: dict[str, Mapping[str, Sequence[float]] | None] = {closed_loop.LOCK_STEP: None}
    if plan.live and REFERENCE not in run.measured:
        run.result.notes.append("no live episodes: the reference could not be timed")
    elif plan.live:
        delays = {name: [ms for block in run.measured[name].times() for ms in block] for name in systems}
        regimes[f"live {environment.control_hz:g} Hz"] = delays
    kinds = environment.kinds
    on_gpu = torch.cuda.is_available() and run.reference.device != "cpu"  # whose memory holds one system for sure
    processes = {f"{name}, {kind}": system for name, system in systems.items() for kind in kinds}
    parallel = 1 if on_gpu else speed.parallel(processes, run.config.spec)
    for regime, delays_ms in regimes.items():
        found = run.place.run_all(
            systems, plan.environment, kinds, plan.episodes, run.directory, delays_ms, parallel, run.on_progress
        )
        reference = found.pop(REFERENCE)
        if isinstance(reference, EdgeVLAError):
            raise reference
        if delays_ms is None:
            run.result.reference.rates = closed_loop.rates(reference)
        done = {name: rows for name, rows in found.items() if not isinstance(rows, EdgeVLAError)}
        file = _write_episodes(out / f"episodes-{regime.replace(' ', '-')}.json", {REFERENCE: reference, **done})
        for row in alive:
            if isinstance(error := found[row.name], EdgeVLAError):
                row.failed = str(error)
                continue
            row.closed_loop = row.closed_loop or ClosedLoop(environment=environment.name, margin=plan.margin)
            row.closed_loop.regimes.append(closed_loop.regime(regime, reference, done[row.name], plan.margin, file))


def _write_episodes(file: Path, rows: Mapping[str, Sequence[EpisodeRow]]) -> Samples:
    """Every episode by system, for whoever wants to look one up."""
    text = json.dumps({name: list(map(dataclasses.asdict, these)) for name, these in rows.items()}) + "\n"
    write_whole(file, text)
    return Samples(file=file.name, sha256=hashlib.sha256(text.encode()).hexdigest())
