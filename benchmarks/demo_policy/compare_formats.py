"""The demo policy in every number format, against bf16: agreement on recorded frames, speed, and closed loop.

    python -m benchmarks.demo_policy.compare_formats --world 1 --out evidence
    python -m benchmarks.demo_policy.compare_formats --format "mixed 3.25" --profile none --floors one --out evidence

World 1 is the base's own; in world 2 the adapter is merged. The frames are the policy's recorded episodes of the
evaluation split, which neither training nor calibration has used; closed-loop episodes start from other seeds again.
GPTQ is calibrated on the expert's episodes of the calibration split. The result is that of `edge-vla bench`.
"""

import argparse
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks import study
from benchmarks.demo_policy import episodes
from edge_vla.bench.plan import FLOORS, ClosedLoopPlan, Plan, ReferencePlan
from edge_vla.bench.result import Result
from edge_vla.bench.run import bench
from edge_vla.demo import ADAPTER, BASE, statistics_key
from edge_vla.export import Recipe, export

LOG: Final = logging.getLogger("benchmarks.demo_policy.compare_formats")
DEFAULT: Final = ("16 bits", "int8", "int4", "int4 GPTQ", "mixed")
RECIPES: Final[Mapping[str, Recipe]] = {
    "16 bits": Recipe(bits=16),
    "int8": Recipe(bits=8),
    "W8A8": Recipe(bits=8, method="smoothquant+gptq"),
    "int4": Recipe(bits=4),
    "int4 GPTQ": Recipe(bits=4, method="gptq"),
    "mixed": Recipe(method="gptq", bits_per_weight=4.125),  # the bytes of int4 with groups of 128
    "mixed 3.25": Recipe(method="gptq", bits_per_weight=3.25),
    "int3 GPTQ": Recipe(bits=3, method="gptq"),
}


def compare(
    world: int, out: Path, plan: Plan, scratch: Path, limit: int | None = None, formats: Sequence[str] = DEFAULT
) -> Result:
    """Export a world's policy in each of `formats` and bench all of them against bf16, on `limit` frames."""
    adapters = [ADAPTER] if world > 1 else []
    frames = scratch / f"world{world}-policy-evaluation"
    episodes.frames(f"world{world}-policy", "evaluation", frames)
    calibration = episodes.frames(f"world{world}-expert", "calibration", scratch / "calibration")
    artifacts = []
    for name in formats:
        recipe = RECIPES[name]
        LOG.info("exporting %s", name)
        artifact = export(BASE, scratch / name, recipe, adapters, calibration if recipe.calibrated else ())
        artifacts.append(artifact.directory)
    reference = ReferencePlan(
        str(BASE), tuple(map(str, adapters)), frames=frames, limit=limit, unnorm_key=statistics_key(world)
    )
    return bench(
        artifacts, reference, out, replace(plan, peer_frames=scratch / "calibration"), LOG.info, overwrite=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_policy.compare_formats", description=__doc__)
    parser.add_argument("--world", type=int, choices=(1, 2), default=1)
    parser.add_argument("--episodes", type=int, default=400, help="of each kind of task and each policy; 0: none")
    parser.add_argument(
        "--format", action="append", choices=list(RECIPES), help=f"repeatable; default: {', '.join(DEFAULT)}"
    )
    parser.add_argument("--limit", type=int, help="only the first so many frames")
    parser.add_argument("--profile", default="default", help="latency profile, as of edge-vla bench")
    parser.add_argument("--floors", choices=("all", "one"), default="all", help="noise floors to measure")
    parser.add_argument("--peer", action="append", default=[], help="NAME or NAME=PYTHON; repeatable")
    parser.add_argument("--live", action="store_true", help="closed loop at the control rate too")
    parser.add_argument("--out", type=Path, required=True, help="directory of result and reports")
    given = parser.parse_args()
    environment = f"edge_vla.demo.environments:world{given.world}"
    plan = Plan(
        floors=FLOORS if given.floors == "all" else FLOORS[:1],
        profile=given.profile,
        paces_hz=(5.0,),
        closed_loop=ClosedLoopPlan(environment, given.episodes, live=given.live) if given.episodes else None,
        peers=tuple((name, python or None) for name, _, python in (peer.partition("=") for peer in given.peer)),
        model=f"the demo policy, world {given.world}",
    )
    with tempfile.TemporaryDirectory(prefix="edge-vla-formats-") as scratch:
        result = compare(given.world, given.out, plan, Path(scratch), given.limit, given.format or DEFAULT)
    failed = [f"{gate.system}: {gate.name}" for gate in result.gates if gate.passed is False]
    if failed:
        sys.exit(f"failed gates: {', '.join(failed)}; see {given.out}/report.md")


if __name__ == "__main__":
    study.run(main, "edge_vla")
