"""What drafts save: the demo policy in closed loop, every kind of draft asked on every frame.

    python -m edge_vla.benchmarks.drafts --model ARTIFACT --episodes 200 --out benchmarks/results/drafts.json

The arm moves by plain decoding, so all kinds see the same frames and the same past. On each frame the picture is seen
once, then decoded plainly, plainly in strict mode, and with each kind of draft in both modes. Counted: first drafts
that were right, by dimension and by phase of the task; passes; tokens that differ from plain decoding of the same mode
(in strict mode there must be none); and milliseconds of prefill and decoding, in turns on the same frames.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from edge_vla.benchmarks.environment import environment
from edge_vla.benchmarks.statistics import wilson
from edge_vla.demo.instructions import phrase
from edge_vla.demo.render import render, world
from edge_vla.demo.rollout import MAX_STEPS
from edge_vla.demo.world import EVALUATION_SEEDS, TRAINING_SEEDS, State, start, step, verdict
from edge_vla.errors import EdgeVLAError
from edge_vla.files import write_whole
from edge_vla.openvla import as_rgb, preprocess
from edge_vla.runtime import Policy, load
from edge_vla.runtime.drafts import KINDS, Bins, Past, Transitions, drafting
from edge_vla.runtime.loop import Decision

LOG: Final = logging.getLogger("edge_vla.benchmarks.drafts")
TASKS: Final[tuple[Literal["pick", "put"], ...]] = ("pick", "put")


@dataclass
class Tally:
    """One kind in one mode."""

    actions: int = 0
    different: int = 0  # actions whose tokens are not those of plain decoding in this mode
    tokens_different: int = 0
    drafted: int = 0
    whole: int = 0  # drafts that were right to the last dimension
    passes: list[int] = field(default_factory=list)
    right: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))  # of, right
    milliseconds: list[float] = field(default_factory=list)

    def add(self, decision: Decision, plain: Decision, phase: str, milliseconds: float) -> None:
        wrong = sum(ours != theirs for ours, theirs in zip(decision.tokens, plain.tokens, strict=True))
        self.actions += 1
        self.different += wrong > 0
        self.tokens_different += wrong
        self.passes.append(decision.passes)
        self.milliseconds.append(milliseconds)
        if decision.drafted:
            self.drafted += 1
            self.whole += decision.drafted == plain.tokens
            for dim, (guess, token) in enumerate(zip(decision.drafted, plain.tokens, strict=True)):
                for name in (f"dimension {dim}", phase, "all"):
                    self.right[name][0] += 1
                    self.right[name][1] += guess == token

    def summary(self) -> dict[str, Any]:
        return {
            "actions": self.actions,
            "different actions": self.different,
            "different tokens": self.tokens_different,
            "passes per action": round(float(np.mean(self.passes)), 3),
            "passes": {str(n): self.passes.count(n) for n in sorted(set(self.passes))},
            "decoder ms, median": round(float(np.median(self.milliseconds)), 3),
            "decoder ms, mean": round(float(np.mean(self.milliseconds)), 3),
            "drafted": self.drafted,
            "right to the last": self.whole,
            "acceptance": {
                name: {"p": round(good / of, 4), "95%": [round(bound, 4) for bound in wilson(good, of)]}
                for name, (of, good) in sorted(self.right.items())
            },
        }


class Frame:
    """A picture seen once, decoded as often as asked."""

    def __init__(self, policy: Policy, state: State, instruction: str, look: int, key: str | None) -> None:
        self.policy = policy
        self.key = policy.config.statistics.resolve(key)
        self.statistics = policy.config.statistics[self.key]
        self.prompt = policy.prompter(instruction)
        pixels = preprocess(as_rgb(render(state, world(look))), policy.config.image)
        with torch.inference_mode():
            self.embeddings = policy.network.vision(torch.from_numpy(pixels)[None])

    def decode(self, kind: str, past: Past, strict: bool) -> tuple[Decision, float]:
        """The decision, and milliseconds from image embeddings to tokens."""
        dims = self.statistics.dims
        began = time.perf_counter()
        with torch.inference_mode():
            decision = self.policy.loop.greedy(
                self.prompt, self.embeddings, dims, lambda stage: None,  # noqa: ARG005
                draft=drafting(KINDS[kind], past, dims), strict=strict,
            )  # fmt: skip
        return decision, (time.perf_counter() - began) * 1e3

    def values(self, decision: Decision) -> NDArray[np.float64]:
        return self.statistics.unnormalise(self.policy.tokens.decode(decision.tokens))


def frames(
    policy: Policy, seed: int, task: Literal["pick", "put"], look: int, key: str | None
) -> Iterator[tuple[Frame, str, list[Decision]]]:
    """An episode's frames, each with its phase; the receiver appends the decision that moves the arm."""
    state, asked = start(seed, task)
    instruction = phrase(asked, seed, "trained")
    for _ in range(MAX_STEPS):
        answer: list[Decision] = []
        frame = Frame(policy, state, instruction, look, key)
        yield frame, "carry" if state.held is not None else "reach", answer
        state = step(state, frame.values(answer[0]))
        if verdict(state, asked) != "running":
            return


def bins(policy: Policy, decision: Decision) -> Bins:
    return tuple(token - policy.config.spec.action.first for token in decision.tokens)


def calibrate(policy: Policy, episodes: int, look: int, key: str | None) -> Transitions:
    """A table from the policy's own actions, on seeds that nothing is measured on."""
    recorded: list[Sequence[Bins]] = []
    none = Past((), policy.config.spec.action.bins)
    for number in range(episodes):
        actions = list[Bins]()
        for frame, _, answer in frames(policy, TRAINING_SEEDS[-1 - number], TASKS[number % 2], look, key):
            answer.append(frame.decode("none", none, False)[0])
            actions.append(bins(policy, answer[0]))
        recorded.append(actions)
    return Transitions.count(recorded)


def measure(
    policy: Policy, kinds: Sequence[str], episodes: int, look: int, key: str | None, transitions: Transitions,
    modes: Mapping[str, bool], actions: int = 0,
) -> dict[str, dict[str, Tally]]:  # fmt: skip
    """Mode -> kind -> tally, over so many episodes, and on until there were so many actions."""
    tallies = {mode: {kind: Tally() for kind in kinds} for mode in modes}
    number, done = 0, 0
    while number < episodes or done < actions:
        past = Past((), policy.config.spec.action.bins, transitions)
        for frame, phase, answer in frames(policy, EVALUATION_SEEDS[number // 2], TASKS[number % 2], look, key):
            for mode, strict in modes.items():
                order = [*kinds[done % len(kinds) :], *kinds[: done % len(kinds)]]  # no kind is always first
                found = {kind: frame.decode(kind, past, strict) for kind in order}
                plain = found["none"][0]
                for kind, (decision, milliseconds) in found.items():
                    tallies[mode][kind].add(decision, plain, phase, milliseconds)
            answer.append(plain)
            past = past.and_now(bins(policy, plain))
            done += 1
        number += 1
        if number % 20 == 0:
            LOG.info("%d episodes, %d actions", number, done)
    return tallies


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m edge_vla.benchmarks.drafts", description=__doc__)
    parser.add_argument("--model", required=True, help="artifact or checkpoint of the demo policy")
    parser.add_argument("--unnorm-key")
    parser.add_argument("--world", type=int, choices=(1, 2), default=1)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--actions", type=int, default=0, help="go on until there were so many")
    parser.add_argument("--calibration", type=int, default=60, help="episodes behind the table of transitions")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--modes", nargs="+", choices=("fast", "strict"), default=["fast", "strict"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(given.threads)
    policy = load(given.model, "cpu")
    kinds = list(dict.fromkeys(["none", *given.kinds]))
    table = calibrate(policy, given.calibration, given.world, given.unnorm_key)
    modes = {mode: mode == "strict" for mode in given.modes}
    began = time.perf_counter()
    tallies = measure(policy, kinds, given.episodes, given.world, given.unnorm_key, table, modes, given.actions)
    result = {
        "version": 1,
        "kind": "drafts",
        "environment": environment(),
        "kernels": dict(policy.network.kernels),
        "world": given.world,
        "episodes": given.episodes,
        "calibration episodes": given.calibration,
        "seconds": round(time.perf_counter() - began, 1),
        "modes": {mode: {kind: tally.summary() for kind, tally in rows.items()} for mode, rows in tallies.items()},
        "speed-up over plain, by mean decoder ms": {
            mode: {kind: round(_mean(rows["none"]) / _mean(tally), 3) for kind, tally in rows.items()}
            for mode, rows in tallies.items()
        },
    }
    write_whole(given.out, json.dumps(result, indent=1) + "\n")


def _mean(tally: Tally) -> float:
    return float(np.mean(tally.milliseconds))


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"error: {error}")
