"""The demo policy in every number format, judged by the benchmark room on recorded frames and at the table.

    python -m benchmarks.demo_policy.compare_formats --world 1 --out evidence
    python -m benchmarks.demo_policy.compare_formats --format "mixed 3.25" --profile none --floors one --out evidence

World 1 is the base's own; in world 2 the adapter is merged. The frames are the policy's own recorded episodes of the
evaluation split, which neither training nor calibration has seen; the closed loop starts from other seeds again. GPTQ
is calibrated on the expert's episodes of the calibration split.
"""

import argparse
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks.demo_policy import episodes
from edge_vla.bench.closed_loop import Trial
from edge_vla.bench.plan import FLOORS, Plan, Reference
from edge_vla.bench.run import bench
from edge_vla.demo import ADAPTER, BASE
from edge_vla.demo.statistics import name as statistics_name
from edge_vla.errors import EdgeVLAError
from edge_vla.export import Recipe, export

LOG: Final = logging.getLogger("benchmarks.demo_policy.compare_formats")
RECIPES: Final[Mapping[str, Recipe]] = {
    "16 bits": Recipe(bits=16),
    "int8": Recipe(bits=8),
    "int4": Recipe(bits=4),
    "int4 GPTQ": Recipe(bits=4, method="gptq"),
    "mixed": Recipe(method="gptq", bits_per_weight=4.125),  # the bytes of int4 with groups of 128
}
FURTHER: Final[Mapping[str, Recipe]] = {
    "W8A8": Recipe(bits=8, method="smoothquant+gptq"),
    "int3 GPTQ": Recipe(bits=3, method="gptq"),
    "mixed 3.25": Recipe(method="gptq", bits_per_weight=3.25),
}
ALL: Final = {**RECIPES, **FURTHER}


def judge(
    number: int, out: Path, plan: Plan, scratch: Path, limit: int | None = None, formats: Sequence[str] = tuple(RECIPES)
) -> dict[str, Any]:
    """Export the policy of a world in each of `formats` and compare all of them with bf16."""
    adapters = [ADAPTER] if number > 1 else []
    frames = scratch / f"world{number}-policy-evaluation"
    episodes.frames(f"world{number}-policy", "evaluation", frames)
    calibration = episodes.frames(f"world{number}-expert", "calibration", scratch / "calibration")
    artifacts = []
    for name in formats:
        recipe = ALL[name]
        LOG.info("exporting %s", name)
        known = calibration if recipe.calibrated else ()
        artifacts.append(export(BASE, scratch / name, recipe, adapters, known).directory)
    key = statistics_name(number)
    reference = Reference(str(BASE), tuple(map(str, adapters)), frames=frames, limit=limit, unnorm_key=key)
    return bench(artifacts, reference, out, replace(plan, peer_frames=scratch / "calibration"), LOG.info)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_policy.compare_formats", description=__doc__)
    parser.add_argument("--world", type=int, choices=(1, 2), default=1)
    parser.add_argument("--episodes", type=int, default=400, help="of each kind of task, and of each policy")
    parser.add_argument(
        "--format", action="append", choices=list(ALL), help=f"one or more; without it {', '.join(RECIPES)}"
    )
    parser.add_argument("--limit", type=int, help="only the first so many frames")
    parser.add_argument("--profile", default="default")
    parser.add_argument("--floors", choices=("all", "one"), default="all")
    parser.add_argument("--peer", action="append", default=[], help="NAME or NAME=PYTHON")
    parser.add_argument("--live", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(words)
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("edge_vla").setLevel(logging.INFO)
    plan = Plan(
        floors=FLOORS if given.floors == "all" else FLOORS[:1],
        profile=given.profile,
        paces_hz=(5.0,),
        trial=Trial(f"demo:{given.world}", given.episodes, live=given.live) if given.episodes else None,
        peers=tuple((name, python or None) for name, _, python in (peer.partition("=") for peer in given.peer)),
        model=f"the demo policy, world {given.world}",
    )
    with tempfile.TemporaryDirectory(prefix="edge-vla-judge-") as scratch:
        result = judge(given.world, given.out, plan, Path(scratch), given.limit, given.format or tuple(RECIPES))
    red = [f"{gate['side']}: {gate['name']}" for gate in result["gates"] if gate["passed"] is False]
    if red:
        sys.exit(f"red gates: {', '.join(red)}; {given.out}/report.md says more")


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"error: {error}")
