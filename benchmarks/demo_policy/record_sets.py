"""Recording the sets of the demo world: `python -m benchmarks.demo_policy.record_sets --set world1-policy`.

Drives every seed of a set with the expert or the shipped policy, and writes the set's index and manifest. `episodes`
reads them. About five minutes for a set that the policy drives.
"""

import argparse
import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import study
from benchmarks.demo_policy import episodes
from benchmarks.demo_policy.episodes import Recorded, RecordedSet, Split
from edge_vla.bench.provenance import provenance
from edge_vla.demo import ADAPTER, BASE, statistics_key
from edge_vla.demo.record import episode, task_kind
from edge_vla.demo.render import world
from edge_vla.demo.rollout import BatchPolicy, OneByOne
from edge_vla.demo.world import TaskKind
from edge_vla.files import sha256_of, write_whole
from edge_vla.runtime import load

LOG: Final = logging.getLogger("benchmarks.demo_policy.record_sets")
TASKS: Final[tuple[TaskKind, ...]] = ("pick", "put")


@dataclass(frozen=True)
class SplitSize:
    episodes: int
    frames: int


@dataclass(frozen=True)
class Manifest:
    """What `calibration/NAME.json` says of a set."""

    version: int
    kind: str
    name: str
    world: int
    who: str
    weights: dict[str, dict[str, str]]  # sha256 by file, of base and adapter
    seeds: tuple[int, int]
    episodes: int
    frames: int
    outcomes: dict[TaskKind, dict[str, int]]
    splits: dict[Split, SplitSize]
    file: str
    sha256: str
    licence: str
    regenerate: str
    recorded: dict[str, Any]  # provenance


def driver(chosen: RecordedSet) -> BatchPolicy | None:
    """The shipped policy in bf16 through the runtime, the adapter merged for world 2; None for the expert."""
    if chosen.driver == "expert":
        return None
    adapters = [ADAPTER] if chosen.world == 2 else []
    return OneByOne(load(BASE, "cpu", adapters=adapters), statistics_key(chosen.world))


def index(policy: BatchPolicy | None, chosen: RecordedSet, seed: int) -> Recorded:
    """Drive one episode and keep what it takes to draw it again."""
    shown = list(episode(policy, world(chosen.world), seed))
    actions = tuple(frame.action for frame, _ in shown if frame.action is not None)
    pictures = tuple(episodes.fingerprint(image) for _, image in shown)
    return Recorded(seed, shown[0][0].instruction, episodes.ending(seed, actions), actions, pictures)


def manifest(chosen: RecordedSet, found: Sequence[Recorded], file: Path) -> Manifest:
    """Who drove, on which seeds, with which outcomes, and the index's hash."""
    folders = {} if chosen.driver == "expert" else {"base": BASE} | ({"adapter": ADAPTER} if chosen.world == 2 else {})
    splits = {
        which: [e for e in found if episodes.split(chosen.episode(e.seed)) == which] for which, _ in episodes.SHARES
    }
    return Manifest(
        version=episodes.VERSION,
        kind="recorded episodes",
        name=chosen.name,
        world=chosen.world,
        who="the scripted expert" if chosen.driver == "expert" else "the demo policy, bf16, one action at a time",
        weights={
            name: {path.name: sha256_of(path) for path in sorted(folder.glob("*.safetensors"))}
            for name, folder in folders.items()
        },
        seeds=(chosen.seeds.start, chosen.seeds.stop),
        episodes=len(found),
        frames=sum(len(e.actions) for e in found),
        outcomes={
            kind: dict(sorted(Counter(e.outcome for e in found if task_kind(e.seed) == kind).items())) for kind in TASKS
        },
        splits={which: SplitSize(len(rows), sum(len(e.actions) for e in rows)) for which, rows in splits.items()},
        file=f"calibration/recorded/{file.name}",
        sha256=sha256_of(file),
        licence="Apache-2.0; drawn by this project, no outside data",
        regenerate=f"python -m benchmarks.demo_policy.episodes --set {chosen.name} --split evaluation --out DIR",
        recorded=dataclasses.asdict(provenance()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_policy.record_sets", description=__doc__)
    parser.add_argument("--set", required=True, choices=list(episodes.SETS))
    parser.add_argument("--out", type=Path, default=episodes.RECORDED, help="directory of the index")
    parser.add_argument("--manifests", type=Path, default=study.ROOT / "calibration", help="directory of the manifest")
    given = parser.parse_args()
    chosen = episodes.recorded_set(given.set)
    policy, found = driver(chosen), []
    for seed in chosen.seeds:
        found.append(index(policy, chosen, seed))
        if len(found) % 100 == 0:
            LOG.info("%s: %d of %d episodes", chosen.name, len(found), len(chosen.seeds))
    for row in found:  # only what can be drawn again is written
        for _ in episodes.replay(chosen, row):
            pass
    file = given.out / f"{chosen.name}.jsonl.gz"
    for folder in (given.out, given.manifests):
        folder.mkdir(parents=True, exist_ok=True)
    episodes.write(file, chosen.name, found)
    document = dataclasses.asdict(manifest(chosen, found, file))
    write_whole(given.manifests / f"{chosen.name}.json", json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    study.run(main)
