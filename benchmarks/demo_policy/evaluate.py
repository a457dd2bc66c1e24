"""The demo policy's figures: `python -m benchmarks.demo_policy.evaluate --out benchmarks/results/demo-policy.json`.

Closed-loop success on seeds that were never trained on, what a black picture or a swapped instruction does,
wordings kept aside, and the second world without and with the adapter. Writes one JSON with command, commit
and device. Measures in bf16 with plain torch; quantised policies are measured by the benchmark room.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch

from benchmarks.demo_policy import measure
from benchmarks.demo_policy.actor import Actor
from benchmarks.demo_policy.learner import demo_spec
from edge_vla.bench.provenance import environment
from edge_vla.bench.statistics import wilson
from edge_vla.checkpoint import open_checkpoint
from edge_vla.demo import ADAPTER, BASE
from edge_vla.demo.instructions import Wording
from edge_vla.demo.render import world
from edge_vla.demo.rollout import Episode, Trick
from edge_vla.errors import EdgeVLAError
from edge_vla.files import write_whole
from edge_vla.model import OpenVLA

LOG: Final = logging.getLogger("benchmarks.demo_policy.evaluate")


@dataclass(frozen=True, slots=True)
class Trial:
    """One row of the table: which weights, which world, what is asked and shown."""

    name: str
    kind: Literal["pick", "put"]
    look: int = 1
    adapter: bool = False
    wording: Wording = "trained"
    trick: Trick = "none"
    at_most: int = 400


TRIALS: Final = (
    Trial("pick", "pick"),
    Trial("put", "put"),
    Trial("pick, wording kept aside", "pick", wording="kept aside"),
    Trial("put, wording kept aside", "put", wording="kept aside"),
    Trial("pick, swapped instruction", "pick", trick="swapped instruction"),
    Trial("pick, black image", "pick", trick="black image", at_most=100),
    Trial("world 2 pick, base", "pick", look=2, at_most=100),
    Trial("world 2 pick, adapter", "pick", look=2, adapter=True),
    Trial("world 2 put, adapter", "put", look=2, adapter=True),
)


def load(base: Path, adapters: Sequence[Path] = ()) -> Actor:
    """The shipped weights in bf16, the adapter merged in float32 and rounded once."""
    tensors = open_checkpoint(base, adapters).tensors
    policy = OpenVLA(demo_spec()).to(torch.bfloat16)
    policy.load_state_dict({name: tensors.load(name) for name in policy.state_dict()})
    return Actor(policy)


def summary(rows: Sequence[Episode]) -> dict[str, Any]:
    found: dict[str, Any] = {name: round(value, 4) for name, value in measure.rates(rows).items()}
    for name, count in (
        ("success", sum(row.success for row in rows)),
        ("wrong object", sum(row.wrong_object for row in rows)),
    ):
        found[f"{name} 95%"] = [round(bound, 4) for bound in wilson(count, len(rows))]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_policy.evaluate", description=__doc__)
    parser.add_argument("--base", type=Path, default=BASE)
    parser.add_argument("--adapter", type=Path, default=ADAPTER)
    parser.add_argument("--world", type=int, choices=(1, 2), help="only the trials in this world")
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    adapted = (arguments.adapter / "adapter_model.safetensors").exists()
    actors = {False: load(arguments.base)}
    if adapted:
        actors[True] = load(arguments.base, [arguments.adapter])
    result: dict[str, Any] = {
        "what": "demo policy, plain torch bf16, greedy decoding, evaluation seeds from the first",
        **environment(),
        "free running": {},
        "closed loop": {},
    }
    wordings: tuple[Wording, ...] = ("trained", "kept aside")
    for wording in wordings if arguments.world != 2 else ():
        result["free running"][f"world 1, wording {wording}"] = measure.frames(
            actors[False], world(1), arguments.frames, wording=wording
        )
    if arguments.world != 1 and adapted:
        result["free running"]["world 2, adapter"] = measure.frames(actors[True], world(2), arguments.frames)
    for trial in TRIALS:
        if (trial.adapter and not adapted) or arguments.world not in (None, trial.look):
            continue
        episodes = min(arguments.episodes, trial.at_most)
        began = time.perf_counter()
        rows = measure.closed_loop(
            actors[trial.adapter], world(trial.look), episodes, trial.kind, trial.wording, trial.trick
        )
        result["closed loop"][trial.name] = {**summary(rows), "seconds": round(time.perf_counter() - began, 1)}
        LOG.info("%s: %s", trial.name, result["closed loop"][trial.name])
    write_whole(arguments.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"{type(error).__name__}: {error}")
