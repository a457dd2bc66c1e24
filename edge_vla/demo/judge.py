"""The demo policy in every number format, through the real runtime, as one committed result.

    python -m edge_vla.demo.judge --out benchmarks/results/demo-formats.json --episodes 100

For the base in its own world, the base in the second, and the base with its adapter in the second: bf16, int8 and
int4 by rounding to nearest, in closed loop; agreement with bf16 and accuracy against the expert on recorded frames.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from edge_vla.benchmarks.bench import Reference, measure_baseline
from edge_vla.benchmarks.environment import environment
from edge_vla.benchmarks.statistics import wilson
from edge_vla.demo import ADAPTER, BASE, expert
from edge_vla.demo.measure import FRAME_SEEDS
from edge_vla.demo.record import record
from edge_vla.demo.render import world
from edge_vla.demo.rollout import MAX_STEPS, Episode
from edge_vla.demo.statistics import name as statistics_name
from edge_vla.demo.tour import closed_loop
from edge_vla.demo.world import EVALUATION_SEEDS, start, step, verdict
from edge_vla.errors import EdgeVLAError
from edge_vla.export import Recipe, export
from edge_vla.files import write_whole
from edge_vla.runtime import load

log = logging.getLogger("edge_vla.demo.judge")

# Name: the world it acts in, and whether the adapter is merged.
ARMS: Final[Mapping[str, tuple[int, bool]]] = {
    "base-world-1": (1, False),
    "base-world-2": (2, False),
    "adapter-world-2": (2, True),
}
BITS: Final = (16, 8, 4)
Kind = Literal["pick", "put"]
KINDS: Final[tuple[Kind, ...]] = ("pick", "put")
EXPERT_EPISODES: Final = 400


def judge(names: Sequence[str], episodes: int, recorded: int, scratch: Path) -> dict[str, Any]:
    """`recorded` episodes give the frames that agreement is measured on; `episodes` are acted by each policy."""
    arms: dict[str, Any] = {}
    for arm in names:
        look, adapted = ARMS[arm]
        adapters = [ADAPTER] if adapted else []
        key = statistics_name(look) if adapted else statistics_name(1)
        frames = scratch / f"frames-{look}"
        if not frames.exists():
            record(frames, None, world(look), FRAME_SEEDS[:recorded])
        judged_by = Reference(str(BASE), tuple(map(str, adapters)), frames=frames, unnorm_key=key)
        (scratch / arm).mkdir()
        baseline = measure_baseline(judged_by, scratch / arm)
        reference = load(BASE, "cpu", adapters=adapters)
        rows: dict[str, Any] = {"bf16 reference": {"closed_loop": _rates(closed_loop(reference, look, episodes, key))}}
        for bits in BITS:
            out = scratch / arm / f"artifact-{bits}"
            export(BASE, out, Recipe(bits=bits), adapters)
            policy = load(out, "cpu", check=False)
            measured = baseline.judge(out, "torch", "auto")
            rows[f"{bits} bits"] = {
                "closed_loop": _rates(closed_loop(policy, look, episodes, key)),
                "agreement": measured["agreement"],
                "noise_floor": measured["noise_floor"],
                "measured": measured["measured"],
            }
            log.info("%s, %d bits: %s", arm, bits, rows[f"{bits} bits"]["closed_loop"])
        arms[arm] = rows
    return {
        "version": 1,
        "kind": "demo formats",
        "environment": environment(),
        "episodes": episodes,
        "expert": {kind: _expert(kind) for kind in KINDS},
        "arms": arms,
    }


def _rates(rows: list[Episode]) -> dict[str, Any]:
    rates: dict[str, Any] = {}
    for kind in KINDS:
        these = [row for row in rows if row.task == kind]
        done, wrong = sum(row.success for row in these), sum(row.wrong_object for row in these)
        rates[kind] = _rate(done, len(these)) | {"wrong_object": wrong}
    return rates


def _expert(kind: Kind) -> dict[str, Any]:
    """The scripted expert on the same starts: what the tables allow at best."""
    done = 0
    for seed in EVALUATION_SEEDS[:EXPERT_EPISODES]:
        state, task = start(seed, kind)
        for _ in range(MAX_STEPS):
            state = step(state, expert.act(state, task))
            if verdict(state, task) != "running":
                break
        done += verdict(state, task) == "success"
    return _rate(done, EXPERT_EPISODES)


def _rate(done: int, episodes: int) -> dict[str, Any]:
    return {"episodes": episodes, "success": done, "interval": wilson(done, episodes)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m edge_vla.demo.judge", description=__doc__)
    parser.add_argument("--arm", action="append", choices=list(ARMS), help="default: all of them")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--recorded", type=int, default=60)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("edge_vla").setLevel(logging.INFO)
    with tempfile.TemporaryDirectory(prefix="edge-vla-judge-") as scratch:
        result = judge(arguments.arm or list(ARMS), arguments.episodes, arguments.recorded, Path(scratch))
    write_whole(arguments.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"error: {error}")
