"""The whole path on the embedded policy, as `edge-vla demo` runs it.

Merge the adapter, export int4 with GPTQ and its ONNX graph, verify, bench against bf16 on recorded frames of the second
world, run both policies closed-loop there, draw an episode, and write one report.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_vla.bench.plan import ClosedLoopPlan, Plan, ReferencePlan
from edge_vla.bench.reports import markdown
from edge_vla.bench.result import Result
from edge_vla.bench.run import bench
from edge_vla.data import Frame, read_frames
from edge_vla.demo import ADAPTER, BASE, statistics_key
from edge_vla.demo.record import record
from edge_vla.demo.render import world
from edge_vla.demo.rollout import OneByOne, strip
from edge_vla.demo.world import EVALUATION_SEEDS, FRAME_SEEDS
from edge_vla.errors import ResourceError, UsageError
from edge_vla.export import Progress, Recipe, export
from edge_vla.export.vision import require_exporter
from edge_vla.files import write_whole
from edge_vla.runtime import load, replay

WORLD: Final = 2
UNFINISHED: Final = ".unfinished"  # a file, until everything is there
FRAMES_PER_EPISODE: Final = 8  # at least; so many seeds give enough frames
CALIBRATION_FRAMES: Final = 64
CALIBRATION_SEEDS: Final = FRAME_SEEDS[100_000 : 100_000 + CALIBRATION_FRAMES // FRAMES_PER_EPISODE]
MARGIN: Final = 0.10  # of success: what a hundred episodes can decide; a bench's own 0.03 takes 344


@dataclass(frozen=True)
class Tour:
    """What a tour leaves: the bench's result, an episode in words, and the report that is also `out/report.md`."""

    result: Result
    episode: str
    report: str
    next_action: str  # a command


def tour(out: Path, episodes: int, frames: int, progress: Progress, on_progress: Callable[[str], None]) -> Tour:
    """Run everything into `out`, which must not exist, or be what an earlier tour left unfinished: that goes first."""
    require_exporter()
    _make(out)
    on_progress("recording the expert's episodes in the second world")
    record(out / "frames", None, world(WORLD), FRAME_SEEDS[: -(-frames // FRAMES_PER_EPISODE)])
    record(out / "calibration", None, world(WORLD), CALIBRATION_SEEDS)  # never those that are measured on
    recorded, calibration = read_frames(out / "frames"), read_frames(out / "calibration")
    on_progress("merging the adapter and exporting int4 with GPTQ")
    recipe = Recipe(bits=4, method="gptq", calibration_frames=CALIBRATION_FRAMES)
    artifact = export(BASE, out / "artifact", recipe, [ADAPTER], calibration, progress)
    artifact.verify()
    policy = load(artifact.directory, "cpu", check=False)
    notes = replay(policy, artifact.directory, artifact.manifest.golden)
    golden = "a near-tie" if notes else "as recorded"
    on_progress(f"verified: {len(artifact.manifest.files)} hashes, golden frame {golden}")
    reference = ReferencePlan(str(BASE), (str(ADAPTER),), frames=out / "frames", limit=frames)
    closed_loop = ClosedLoopPlan(f"edge_vla.demo.environments:world{WORLD}", max(1, episodes // 2), MARGIN)
    plan = Plan(closed_loop=closed_loop, model=f"the demo policy, world {WORLD}")
    result = bench([artifact.directory], reference, out / "bench", plan, on_progress)
    robot = OneByOne(policy, statistics_key(WORLD))
    picture, episode = strip(robot, world(WORLD), EVALUATION_SEEDS[-1], "pick")
    picture.save(out / "episode.png")
    outcome = f"{'success' if episode.success else 'no success'} in {episode.steps} steps"
    said = f"{episode.instruction!r}: {outcome}"
    action = _next_action(recorded[0], out)
    report = "\n".join([markdown(result), f"![an episode](episode.png)\n\n{said}.\n", _files(out, action)])
    write_whole(out / "report.md", report)
    (out / UNFINISHED).unlink()
    return Tour(result, said, report, action)


def _make(out: Path) -> None:
    """An empty directory, marked as unfinished. UsageError if anything else is there, or there is no place for it."""
    try:
        if (out / UNFINISHED).exists():
            shutil.rmtree(out)
        elif out.exists():
            raise UsageError(f"--out {out} exists already: remove it or choose another name")
        out.mkdir(parents=True)
        (out / UNFINISHED).touch()
    except OSError as error:
        raise ResourceError(f"--out {out}: {error.strerror}") from error


def _files(out: Path, action: str) -> str:
    return f"""## Files

- `{out}/artifact`: the int4 artifact; `edge-vla inspect {out}/artifact` describes it
- `{out}/bench/report.html`: this report with plots, for a browser
- `{out}/bench/result.json`: every figure with its raw counts, command, commit and device
- one action: `{action}`
"""


def _next_action(frame: Frame, out: Path) -> str:
    picture = out / "frames" / frame.image.name
    return f'edge-vla run {out}/artifact --image {picture} --instruction "{frame.instruction}"'
