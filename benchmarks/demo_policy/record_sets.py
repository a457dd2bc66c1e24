"""The recorded sets of the demo world: `python -m benchmarks.demo_policy.record_sets --set world1-policy`.

Drives every seed of a set with the expert or the shipped policy and writes the set's index and its manifest. Knows who
drives; `episodes.py` knows what is kept.
"""

import argparse
import json
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.demo_policy import episodes
from benchmarks.demo_policy.episodes import Recorded, RecordedSet
from edge_vla.bench.provenance import environment
from edge_vla.demo import ADAPTER, BASE
from edge_vla.demo.record import episode, kind
from edge_vla.demo.render import world
from edge_vla.demo.rollout import Answers, OneByOne
from edge_vla.demo.statistics import name as statistics_name
from edge_vla.errors import EdgeVLAError
from edge_vla.files import sha256_of, write_whole
from edge_vla.runtime import load

LOG: Final = logging.getLogger("benchmarks.demo_policy.record_sets")
_SPLITS: Final = tuple(which for which, _ in episodes.SHARES)


def driver(chosen: RecordedSet) -> Answers | None:
    """The shipped policy in bf16 through the runtime, the adapter merged for world 2; None for the expert."""
    if chosen.who == "expert":
        return None
    adapters = [ADAPTER] if chosen.world == 2 else []
    return OneByOne(load(BASE, "cpu", adapters=adapters), statistics_name(chosen.world))


def index(policy: Answers | None, chosen: RecordedSet, seed: int) -> Recorded:
    """Drive one episode and keep what it takes to draw it again."""
    shown = list(episode(policy, world(chosen.world), seed))
    actions = tuple(frame.action for frame, _ in shown if frame.action is not None)
    pictures = tuple(episodes.fingerprint(image) for _, image in shown)
    return Recorded(seed, shown[0][0].instruction, episodes.ending(seed, actions), actions, pictures)


def manifest(chosen: RecordedSet, found: Sequence[Recorded], file: Path) -> dict[str, Any]:
    """What a set is, for `calibration/`: who drove, on which seeds, how it went, and the index's hash."""
    weights = {} if chosen.who == "expert" else {"base": BASE} | ({"adapter": ADAPTER} if chosen.world == 2 else {})
    by_split = {which: [e for e in found if episodes.split(chosen.episode(e.seed)) == which] for which in _SPLITS}
    ends = {asked: Counter(e.outcome for e in found if kind(e.seed) == asked) for asked in ("pick", "put")}
    return {
        "version": episodes.VERSION,
        "kind": "recorded episodes",
        "name": chosen.name,
        "world": chosen.world,
        "who": "the scripted expert" if chosen.who == "expert" else "the demo policy, bf16, one action at a time",
        "weights": {
            name: {path.name: sha256_of(path) for path in sorted(folder.glob("*.safetensors"))}
            for name, folder in weights.items()
        },
        "seeds": [chosen.seeds.start, chosen.seeds.stop],
        "episodes": len(found),
        "frames": sum(len(e.actions) for e in found),
        "outcomes": {kind: dict(sorted(counts.items())) for kind, counts in ends.items()},
        "splits": {
            which: {"episodes": len(rows), "frames": sum(len(e.actions) for e in rows)}
            for which, rows in by_split.items()
        },
        "file": f"edge_vla/demo/recorded/{file.name}",
        "sha256": sha256_of(file),
        "licence": "Apache-2.0; drawn by this project, no outside data",
        "regenerate": f"python -m benchmarks.demo_policy.episodes --set {chosen.name} --split evaluation --out DIR",
        "recorded": environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_policy.record_sets", description=__doc__)
    parser.add_argument("--set", required=True, choices=list(episodes.SETS))
    parser.add_argument("--out", type=Path, default=episodes.RECORDED, help="folder of the index")
    parser.add_argument("--manifests", type=Path, default=Path("calibration"), help="folder of the manifest")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    chosen = episodes.recorded_set(arguments.set)
    policy, found = driver(chosen), []
    for seed in chosen.seeds:
        found.append(index(policy, chosen, seed))
        if len(found) % 100 == 0:
            LOG.info("%s: %d of %d episodes", chosen.name, len(found), len(chosen.seeds))
    for row in found:  # what is written can be drawn again
        for _ in episodes.replay(chosen, row):
            pass
    file = arguments.out / f"{chosen.name}.jsonl.gz"
    for folder in (arguments.out, arguments.manifests):
        folder.mkdir(parents=True, exist_ok=True)
    episodes.write(file, chosen.name, found)
    write_whole(arguments.manifests / f"{chosen.name}.json", json.dumps(manifest(chosen, found, file), indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"{type(error).__name__}: {error}")
