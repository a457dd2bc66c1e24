"""What the demo policy can do: `python -m benchmarks.demo_policy.evaluate --out RESULT.json`.

Closed-loop success on seeds that were never trained on, in trained and in held-out wordings, under two controls (a
black picture, a swapped instruction), and in the second world without and with the adapter. Plain torch, bf16, greedy;
`compare_formats` measures quantised policies.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

import torch

from benchmarks import study
from benchmarks.demo_policy import measure
from benchmarks.demo_policy.actor import Actor
from benchmarks.demo_policy.learner import demo_spec
from benchmarks.demo_policy.results import PolicyEvaluation
from benchmarks.demo_policy.wordings import Wording
from edge_vla.checkpoint import open_checkpoint
from edge_vla.demo import ADAPTER, BASE
from edge_vla.demo.render import world
from edge_vla.demo.world import TaskKind
from edge_vla.model import OpenVLA

LOG: Final = logging.getLogger("benchmarks.demo_policy.evaluate")


@dataclass(frozen=True, slots=True)
class Condition:
    """One row of the table: which weights, which world, what is asked and shown."""

    name: str
    kind: TaskKind
    world: int = 1
    adapter: bool = False
    wording: Wording = "trained"
    control: measure.Control = "none"
    at_most: int = 400  # episodes


CONDITIONS: Final = (
    Condition("pick", "pick"),
    Condition("put", "put"),
    Condition("pick, held-out wording", "pick", wording="held out"),
    Condition("put, held-out wording", "put", wording="held out"),
    Condition("pick, swapped instruction", "pick", control="swapped instruction"),
    Condition("pick, black image", "pick", control="black image", at_most=100),
    Condition("world 2 pick, base", "pick", world=2, at_most=100),
    Condition("world 2 pick, adapter", "pick", world=2, adapter=True),
    Condition("world 2 put, adapter", "put", world=2, adapter=True),
)


def load(base: Path, adapters: Sequence[Path] = ()) -> Actor:
    """A demo checkpoint in bf16, adapters merged in float32 and rounded once."""
    tensors = open_checkpoint(base, adapters).tensors
    policy = OpenVLA(demo_spec()).to(torch.bfloat16)
    policy.load_state_dict({name: tensors.load(name) for name in policy.state_dict()})
    return Actor(policy)


def evaluate(base: Actor, adapted: Actor | None, only_world: int | None, episodes: int, count: int) -> PolicyEvaluation:
    """Every condition of these worlds, `count` frames a wording; without an adapter, not the adapter's."""
    frames = {}
    for wording in get_args(Wording) if only_world != 2 else ():
        frames[f"world 1, {wording} wording"] = measure.frames(base, world(1), count, wording=wording)
    if only_world != 1 and adapted is not None:
        frames["world 2, adapter"] = measure.frames(adapted, world(2), count)
    closed_loop = {}
    for condition in CONDITIONS:
        actor = adapted if condition.adapter else base
        if actor is None or only_world not in (None, condition.world):
            continue
        limit = min(episodes, condition.at_most)
        rows = measure.closed_loop(
            actor, world(condition.world), limit, condition.kind, condition.wording, condition.control
        )
        closed_loop[condition.name] = measure.rates(rows)
        LOG.info("%s: %s", condition.name, closed_loop[condition.name])
    return PolicyEvaluation(closed_loop, frames)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_policy.evaluate", description=__doc__)
    parser.add_argument("--base", type=Path, default=BASE, help="checkpoint directory")
    parser.add_argument("--adapter", type=Path, default=ADAPTER, help="adapter directory; its conditions need one")
    parser.add_argument("--world", type=int, choices=(1, 2), help="only the conditions in this world")
    parser.add_argument("--episodes", type=int, default=400, help="of each condition")
    parser.add_argument("--frames", type=int, default=1000, help="single frames")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="result file")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    has_adapter = (given.adapter / "adapter_model.safetensors").exists()
    adapted = load(given.base, [given.adapter]) if has_adapter else None
    result = evaluate(load(given.base), adapted, given.world, given.episodes, given.frames)
    study.write_result(given.out, result)


if __name__ == "__main__":
    study.run(main)
