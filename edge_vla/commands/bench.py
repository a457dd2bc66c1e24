"""`edge-vla bench` and `edge-vla compare`: is an artifact still the same policy, how fast is it, what changed?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, cast

import typer

from edge_vla.errors import BackendError, UsageError
from edge_vla.options import (
    ARITHMETICS,
    Adapters,
    Device,
    Kernel,
    MergeArithmetic,
    Preprocessing,
    PromptChoice,
    StatisticsFile,
    UnnormKey,
    Verbose,
    Vision,
    choice,
    script,
)
from edge_vla.terminal import interruptible, out, steps

if TYPE_CHECKING:
    from edge_vla.bench.place import Place
    from edge_vla.bench.plan import ClosedLoopPlan, Plan, ReferencePlan
    from edge_vla.bench.reports import Line
    from edge_vla.bench.result import Result

ENVIRONMENTS: Final[Mapping[str, str]] = {
    "demo:1": "edge_vla.demo.environments:world1",
    "demo:2": "edge_vla.demo.environments:world2",
}

TONES: Final[Mapping[str, str]] = {"good": "green", "bad": "red", "open": "yellow", "soft": "dim", "plain": ""}

Artifacts = Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="The artifacts to measure.")]
ReferenceSource = Annotated[str, typer.Option("--reference", help="The checkpoint that they were made from.")]
Out = Annotated[Path, typer.Option("--out", help="Directory for the result and its reports.")]
Frames = Annotated[Path | None, typer.Option(help="Frames (images and frames.jsonl); synthetic by default.")]
Limit = Annotated[int | None, typer.Option(help="Use only the first N frames.", min=1)]
Floor = Annotated[
    list[str] | None,
    typer.Option(
        help="Harmless changes of the reference to compare with; repeat: rounding noise (default), float32, "
        "math attention, batch of 8, run again."
    ),
]
Profile = Annotated[str, typer.Option(help="How many queries are timed: none, brief, quick, default, publish.")]
Pace = Annotated[list[float] | None, typer.Option(help="Also time at this rate in Hz; repeat for more.")]
PeerNames = Annotated[
    list[str] | None,
    typer.Option(
        "--peer",
        help="hf-bf16, hf-sdpa, bnb-nf4, bnb-int8 or gptqmodel, or NAME=PYTHON of its own environment; repeat.",
    ),
]
PeerFrames = Annotated[Path | None, typer.Option(help="Frames for peers that calibrate; not the measured ones.")]
Env = Annotated[
    str | None, typer.Option("--env", help="Closed-loop environment: demo:1, demo:2 or package.module:attribute.")
]
Episodes = Annotated[int, typer.Option(help="Closed-loop episodes of each kind of task.", min=1)]
Margin = Annotated[float, typer.Option(help="Non-inferiority margin, a share of episodes, declared beforehand.")]
Live = Annotated[bool, typer.Option("--live", help="Also run the environment in real time while a policy computes.")]
StageProfile = Annotated[
    bool, typer.Option("--stage-profile", help="Also where one action's time goes, stage by stage, against its limit.")
]
ModelName = Annotated[str | None, typer.Option(help="What the tables call the policy.")]
WithAgreement = Annotated[bool, typer.Option(help="Compare tokens; without, measure speed and memory alone.")]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray", help="Spread frames and episodes over a Ray cluster: its address, or local for this machine."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier bench in --out.")]
TimeReference = Annotated[bool, typer.Option(help="Time the reference too; it may not fit in memory.")]


def bench(
    artifacts: Artifacts,
    reference: ReferenceSource,
    out_dir: Out,
    frames: Frames = None,
    limit: Limit = None,
    floor: Floor = None,
    profile: Profile = "quick",
    pace: Pace = None,
    peer: PeerNames = None,
    peer_frames: PeerFrames = None,
    env: Env = None,
    episodes: Episodes = 400,
    margin: Margin = 0.03,
    live: Live = False,
    stage_profile: StageProfile = False,
    model: ModelName = None,
    agreement: WithAgreement = True,
    time_reference: TimeReference = True,
    unnorm_key: UnnormKey = None,
    adapter: Adapters = None,
    merge_arithmetic: MergeArithmetic = "fp32",
    prompt: PromptChoice = None,
    statistics: StatisticsFile = None,
    device: Device = "auto",
    vision: Vision = "auto",
    kernel: Kernel = "auto",
    preprocess: Preprocessing = "none",
    ray: Ray = None,
    overwrite: Overwrite = False,
    verbose: Verbose = False,
) -> None:
    """Agreement, closed loop, latency and memory of artifacts against their reference. Exits with 1 on a red gate."""
    require_bench()
    from edge_vla.bench.peers import require
    from edge_vla.bench.plan import FLOORS, Plan

    wanted = reference_plan(
        reference, adapter, merge_arithmetic, frames, limit, unnorm_key, device, prompt, statistics, preprocess
    )
    plan = Plan(
        floors=tuple(floor or FLOORS[:1]),
        profile=profile,
        paces_hz=tuple(pace or ()),
        closed_loop=closed_loop_plan(env, episodes, margin, live),
        peers=tuple((name, python or None) for name, _, python in (one.partition("=") for one in peer or ())),
        peer_frames=peer_frames,
        model=model,
        agreement=agreement,
        time_reference=time_reference,
        stage_profile=stage_profile,
    )
    require(plan.peers)
    plan = replace(plan, vision=vision, kernel=kernel)
    measure(artifacts, wanted, out_dir, plan, place_of(ray), overwrite=overwrite, verbose=verbose)


def reference_plan(
    reference: str,
    adapter: Sequence[Path] | None,
    merge_arithmetic: str,
    frames: Path | None,
    limit: int | None,
    unnorm_key: str | None,
    device: str,
    prompt: str | None,
    statistics: Path | None,
    preprocess: str,
) -> ReferencePlan:
    """The options that are about the reference. UsageError for those that do not exist."""
    from edge_vla.bench.plan import ReferencePlan

    return ReferencePlan(
        source=reference,
        adapters=tuple(map(str, adapter or ())),
        merge_arithmetic=cast(Literal["fp32", "upstream"], choice("--merge-arithmetic", merge_arithmetic, ARITHMETICS)),
        frames=frames,
        limit=limit,
        unnorm_key=unnorm_key,
        device=device,
        prompt=prompt,
        statistics=None if statistics is None else str(statistics),
        preprocess=script(preprocess),
    )


def closed_loop_plan(env: str | None, episodes: int, margin: float, live: bool) -> ClosedLoopPlan | None:
    """UsageError for --live without an environment."""
    from edge_vla.bench.plan import ClosedLoopPlan

    if env:
        return ClosedLoopPlan(ENVIRONMENTS.get(env, env), episodes, margin, live)
    if live:
        raise UsageError("--live needs an environment: add --env demo:1, or your own package.module:attribute")
    return None


def require_bench() -> None:
    """Raise BackendError unless the packages of the extra `bench` are there."""
    missing = [package for package in ("jinja2", "psutil", "scipy") if find_spec(package) is None]
    if missing:
        raise BackendError(f"this command needs {', '.join(missing)}: pip install 'edge-vla[bench]'")


def place_of(ray: str | None) -> Place | None:
    """Where frames and episodes are computed: here (None), or on a cluster."""
    if ray is None:
        return None
    if find_spec("ray") is None:
        raise BackendError("--ray needs ray: pip install 'edge-vla[ray]'")
    from edge_vla.bench.ray_place import RayPlace

    return RayPlace(ray)


def measure(
    artifacts: Sequence[Path],
    reference: ReferencePlan,
    out_dir: Path,
    plan: Plan,
    place: Place | None,
    *,
    overwrite: bool,
    verbose: bool,
) -> None:
    """Run the bench and say what came of it. Exit code 1 if a gate is red, 3 if a requested peer did not run."""
    from edge_vla.bench.run import bench as run_bench

    kept = f"what was measured is in {out_dir}; the same command with --overwrite measures again"
    with interruptible(lambda: kept if (out_dir / "result.json").exists() else "nothing was measured yet"):
        with steps("measuring") as on_step:
            result = run_bench(artifacts, reference, out_dir, plan, on_step, place, overwrite=overwrite)
        show(result, out_dir, verbose)
    if any(gate.passed is False for gate in result.gates):
        raise typer.Exit(1)
    if any(peer.failed is not None for peer in result.peers):
        raise typer.Exit(BackendError.exit_code)


def show(result: Result, out_dir: Path, verbose: bool) -> None:
    """The result in about ten lines, and where its report is; the whole report as Markdown if asked."""
    from edge_vla.bench import reports

    if verbose:
        print(reports.markdown(result))
    show_lines(reports.lines(result, reports.columns()))
    out.print(f"report: {out_dir / 'report.html'}" + ("" if verbose else " (-v prints it here)"))


def show_lines(lines: Sequence[Line]) -> None:
    for line in lines:
        out.print(line.text, style=TONES[line.tone])


def compare(
    before: Annotated[Path, typer.Argument(help="A result.json, or a bench's directory.")],
    after: Annotated[Path, typer.Argument(help="Another.")],
    verbose: Verbose = False,
) -> None:
    """What changed from one bench result to another."""
    require_bench()
    from edge_vla.bench import reports

    found = reports.compare(reports.read(before), reports.read(after))
    if verbose:
        print(found.markdown())
        return
    show_lines(found.brief(reports.columns()))
    if found.table is not None:
        out.print("-v prints every figure")
