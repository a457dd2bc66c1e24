"""The whole path on the embedded policy, as `edge-vla demo` runs it.

Merge the adapter, export int4 with its ONNX graph, verify, bench against bf16 on recorded frames of the second
world, act in that world with both, draw an episode, and write one report.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from edge_vla.artifact import Artifact
from edge_vla.benchmarks.bench import Reference, bench
from edge_vla.demo import ADAPTER, BASE
from edge_vla.demo.measure import FRAME_SEEDS
from edge_vla.demo.record import record
from edge_vla.demo.render import world
from edge_vla.demo.rollout import Episode, OneByOne, rollout, strip
from edge_vla.demo.statistics import name as statistics_name
from edge_vla.demo.world import EVALUATION_SEEDS
from edge_vla.errors import ResourceError, UsageError
from edge_vla.export import Progress, Recipe, export
from edge_vla.files import write_whole
from edge_vla.frames import read_frames
from edge_vla.runtime import Policy, load, replay

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
    policies = {
        "int4 artifact": load(artifact.directory, "cpu", check=False),
        "bf16 reference": load(BASE, "cpu", adapters=[ADAPTER]),
    }
    notes = replay(policies["int4 artifact"], artifact.directory, artifact.manifest.golden)
    tell(f"verified: {len(artifact.manifest.files)} hashes, golden frame {'a near-tie' if notes else 'as recorded'}")
    tell(f"measuring both on {min(frames, len(recorded))} frames")
    reference = Reference(str(BASE), (str(ADAPTER),), frames=out / "frames", limit=frames)
    result = bench(artifact.directory, reference, out / "bench", tell=tell)
    tell(f"acting: {episodes} episodes of each")
    rows = {name: closed_loop(policy, LOOK, episodes) for name, policy in policies.items()}
    picture, shown = strip(
        OneByOne(policies["int4 artifact"], statistics_name(LOOK)), world(LOOK), EVALUATION_SEEDS[-1], "pick"
    )
    picture.save(out / "episode.png")
    evidence = {**result, "kind": "demo", "closed_loop": {name: _dump(row) for name, row in rows.items()}}
    write_whole(out / "result.json", json.dumps(evidence, indent=1) + "\n")
    report = "\n".join(
        [
            (out / "bench" / "report.md").read_text(encoding="utf-8"),
            *_success(rows),
            f"\n![an episode](episode.png)\n\n{shown.instruction!r}: {'done' if shown.success else 'not done'} "
            f"in {shown.steps} steps.\n",
            *_next_steps(artifact, out),
        ]
    )
    write_whole(out / "report.md", report)
    return report


def closed_loop(policy: Policy, look: int, episodes: int, key: str | None = None) -> list[Episode]:
    """Pick and put episodes, half of each, one robot at a time through `policy.act`."""
    robot = OneByOne(policy, key)
    picks = rollout(robot, world(look), EVALUATION_SEEDS[: -(-episodes // 2)], "pick")
    puts = rollout(robot, world(look), EVALUATION_SEEDS[: episodes // 2], "put")
    return [*picks, *puts]


def _success(rows: Mapping[str, Sequence[Episode]]) -> list[str]:
    lines = ["## Does it still do the task?", "", "| closed loop, second world | picked | put | wrong object |"]
    lines.append("|---|---|---|---|")
    for name, episodes in rows.items():
        cells = []
        for kind in ("pick", "put"):
            these = [episode for episode in episodes if episode.task == kind]
            cells.append(f"{sum(episode.success for episode in these)} of {len(these)}")
        wrong = sum(episode.wrong_object for episode in episodes)
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {wrong} of {len(episodes)} |")
    return lines


def _next_steps(artifact: Artifact, out: Path) -> list[str]:
    return [
        "## What lies where",
        "",
        f"- `{out}/artifact`: the int4 artifact, `edge-vla inspect {out}/artifact`",
        f"- `{out}/result.json`: every figure above with its raw counts, command, commit and device",
        f"- one action: `edge-vla run {out}/artifact --image {out}/frames/{_first_image(out)} "
        f'--instruction "{artifact.manifest.golden[0].instruction}"`',
        "",
    ]


def _first_image(out: Path) -> str:
    return read_frames(out / "frames")[0].image.name


def _dump(rows: Sequence[Episode]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(row) for row in rows]
