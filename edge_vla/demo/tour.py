"""The whole path on the embedded policy, as `edge-vla demo` runs it.

Merge the adapter, export int4 with its ONNX graph, verify, bench against bf16 on recorded frames of the second
world, act in that world with both, draw an episode, and write one report.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge_vla.artifact import Artifact
from edge_vla.bench.closed_loop import Trial
from edge_vla.bench.plan import Plan, Reference
from edge_vla.bench.reports import markdown
from edge_vla.bench.run import bench
from edge_vla.data import read_frames
from edge_vla.demo import ADAPTER, BASE
from edge_vla.demo.record import record
from edge_vla.demo.render import world
from edge_vla.demo.rollout import OneByOne, strip
from edge_vla.demo.statistics import name as statistics_name
from edge_vla.demo.world import EVALUATION_SEEDS, FRAME_SEEDS
from edge_vla.errors import ResourceError, UsageError
from edge_vla.export import Progress, Recipe, export
from edge_vla.files import write_whole
from edge_vla.runtime import load, replay

LOOK: Final = 2
FRAMES_AN_EPISODE: Final = 8  # about; recording stops at the first episode that brings enough


def tour(out: Path, episodes: int, frames: int, progress: Progress, tell: Callable[[str], None]) -> str:
    """Run everything into `out`, which must not exist; returns the report, which is also `out/report.md`."""
    if out.exists():
        raise UsageError(f"--out {out} exists already: remove it or choose another name")
    try:
        out.mkdir(parents=True)
    except OSError as error:
        raise ResourceError(f"--out {out}: {error.strerror}") from error
    tell("recording what the expert sees and does in the second world")
    record(out / "frames", None, world(LOOK), FRAME_SEEDS[: -(-frames // FRAMES_AN_EPISODE)])
    recorded = read_frames(out / "frames")
    tell("merging the adapter and exporting int4")
    artifact = export(BASE, out / "artifact", Recipe(bits=4), [ADAPTER], recorded, progress)
    artifact.verify()
    policy = load(artifact.directory, "cpu", check=False)
    notes = replay(policy, artifact.directory, artifact.manifest.golden)
    tell(f"verified: {len(artifact.manifest.files)} hashes, golden frame {'a near-tie' if notes else 'as recorded'}")
    reference = Reference(str(BASE), (str(ADAPTER),), frames=out / "frames", limit=frames)
    plan = Plan(trial=Trial(f"demo:{LOOK}", max(1, episodes // 2)), model=f"the demo policy, world {LOOK}")
    result = bench([artifact.directory], reference, out / "bench", plan, tell)
    robot = OneByOne(policy, statistics_name(LOOK))
    picture, shown = strip(robot, world(LOOK), EVALUATION_SEEDS[-1], "pick")
    picture.save(out / "episode.png")
    report = "\n".join(
        [
            markdown(result),
            f"![an episode](episode.png)\n\n{shown.instruction!r}: {'done' if shown.success else 'not done'} "
            f"in {shown.steps} steps.\n",
            *_next_steps(artifact, out),
        ]
    )
    write_whole(out / "report.md", report)
    return report


def _next_steps(artifact: Artifact, out: Path) -> list[str]:
    return [
        "## What lies where",
        "",
        f"- `{out}/artifact`: the int4 artifact, `edge-vla inspect {out}/artifact`",
        f"- `{out}/bench/report.html`: all of the above as plots with their tables, for a browser",
        f"- `{out}/bench/result.json`: every figure with its raw counts, command, commit and device",
        f"- one action: `edge-vla run {out}/artifact --image {out}/frames/{_first_image(out)} "
        f'--instruction "{artifact.manifest.golden[0].instruction}"`',
        "",
    ]


def _first_image(out: Path) -> str:
    return read_frames(out / "frames")[0].image.name
