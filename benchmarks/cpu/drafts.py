"""What drafts save: the demo policy in closed loop, every proposal asked on every frame.

    python -m benchmarks.cpu.drafts --model ARTIFACT --episodes 200 --actions 20000 --out RESULT.json

The arm moves by plain decoding, so all proposals see the same frames and the same past. On each frame the picture is
seen once, then decoded plainly, and with each proposal both bitwise exact and in the prefill ("fast"). Counted:
first drafts that were right, by dimension and by phase of the task; passes; tokens that differ from plain decoding of
the same mode (bitwise exact, there must be none). After `--episodes` only what a session does is asked, until there
were `--actions`. Each episode is kept in `--records`: the same command goes on where it was stopped, and one told of
several files sums them up (`--start` keeps two runs on different episodes). With `--time` the result says what passes
cost too, proposals in turns on the same frames: for a quiet machine and few episodes.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.cpu.draft_strategies import AFTER_PREFILL, PROPOSALS, Heads, Known, Transitions, Tree
from edge_vla.bench.provenance import environment
from edge_vla.bench.statistics import cluster_interval
from edge_vla.demo.instructions import phrase
from edge_vla.demo.render import render, world
from edge_vla.demo.rollout import MAX_STEPS
from edge_vla.demo.world import EVALUATION_SEEDS, TRAINING_SEEDS, State, start, step, verdict
from edge_vla.errors import EdgeVLAError
from edge_vla.files import write_whole
from edge_vla.openvla import as_rgb, preprocess
from edge_vla.runtime import Policy, load
from edge_vla.runtime.decode import Decision
from edge_vla.runtime.drafts import Bins, Draft

LOG: Final = logging.getLogger("benchmarks.cpu.drafts")
TASKS: Final[tuple[Literal["pick", "put"], ...]] = ("pick", "put")
MODES: Final[Mapping[str, bool]] = {"strict": True, "fast": False}
SESSION: Final = ("none", "previous")  # what is asked of every frame
PHASES: Final = ("reach", "carry")

Record = dict[str, Any]  # of one action: phase, plain bins, and by mode and proposal what `_answer` gives


class Frame:
    """A picture seen once, decoded as often as asked."""

    def __init__(self, policy: Policy, state: State, instruction: str, look: int, key: str | None) -> None:
        self.policy = policy
        self.statistics = policy.config.statistics[policy.config.statistics.resolve(key)]
        self.prompt = policy.prompter(instruction)
        self.phase = "carry" if state.held is not None else "reach"
        image = render(state, world(look))
        began = time.perf_counter()
        pixels = preprocess(as_rgb(image), policy.config.image)
        with torch.inference_mode():
            self.embeddings = policy.network.vision(torch.from_numpy(pixels)[None]).clone()
        self.seen_ms = (time.perf_counter() - began) * 1e3

    def decode(self, draft: Draft | None, bitwise_exact: bool) -> tuple[Decision, float]:
        """The decision, and milliseconds from image embeddings to tokens."""
        began = time.perf_counter()
        with torch.inference_mode():
            decision = self.policy.loop.greedy(
                self.prompt, self.embeddings, self.statistics.dims, lambda stage: None,  # noqa: ARG005
                draft=draft, bitwise_exact=bitwise_exact,
            )  # fmt: skip
        return decision, (time.perf_counter() - began) * 1e3

    def hidden(self) -> torch.Tensor:
        """(width,) float32: the prefill's last row."""
        with torch.inference_mode():
            return self.policy.loop.forced(self.prompt, self.embeddings, (0,))[0].float().clone()

    def bins(self, tokens: Sequence[int]) -> Bins:
        return tuple(token - self.policy.config.spec.action.first for token in tokens)

    def values(self, decision: Decision) -> NDArray[np.float64]:
        return self.statistics.unnormalise(self.policy.tokens.decode(decision.tokens))


def frames(
    policy: Policy, seed: int, task: Literal["pick", "put"], look: int, key: str | None
) -> Iterator[tuple[Frame, list[Decision]]]:
    """An episode's frames; the receiver appends the decision that moves the arm."""
    state, asked = start(seed, task)
    instruction = phrase(asked, seed, "trained")
    for _ in range(MAX_STEPS):
        answer: list[Decision] = []
        frame = Frame(policy, state, instruction, look, key)
        yield frame, answer
        state = step(state, frame.values(answer[0]))
        if verdict(state, asked) != "running":
            return


class Proposers:
    """What the proposals learnt from the policy's own actions, on seeds that nothing is measured on."""

    def __init__(self, policy: Policy, episodes: int, look: int, key: str | None) -> None:
        self.policy, self.look, self.key = policy, look, key
        self.bins = policy.config.spec.action.bins
        recorded, before, hidden = list[list[Bins]](), list[Bins | None](), list[torch.Tensor]()
        for number in range(episodes):
            actions = list[Bins]()
            for frame, answer in frames(policy, TRAINING_SEEDS[-1 - number], TASKS[number % 2], look, key):
                answer.append(frame.decode(None, False)[0])
                before.append(actions[-1] if actions else None)
                hidden.append(frame.hidden())
                actions.append(frame.bins(answer[0].tokens))
            recorded.append(actions)
        self.transitions = Transitions.count(recorded)
        every = [action for actions in recorded for action in actions]
        LOG.info("%d actions to learn from", len(every))
        self.heads = {
            past: Heads(torch.stack(hidden), before, every, self.bins, past) for past in (False, True) if every
        }

    def episode(self, number: int, proposals: Sequence[str]) -> list[Record]:
        seed, task, past, records = EVALUATION_SEEDS[number // 2], TASKS[number % 2], list[Bins](), list[Record]()
        for moment, (frame, answer) in enumerate(frames(self.policy, seed, task, self.look, self.key)):
            plain = {mode: frame.decode(None, bitwise_exact)[0] for mode, bitwise_exact in MODES.items()}
            answer.append(plain["strict"])
            truth = frame.bins(answer[0].tokens)
            learnt = set(proposals) & set(AFTER_PREFILL)
            hidden = frame.hidden() if learnt else torch.empty(0)
            record: Record = {"phase": frame.phase, "plain": truth, "seen ms": round(frame.seen_ms, 3)}
            turn = (number + moment) % len(proposals)
            for mode, bitwise_exact in MODES.items():
                record[mode] = {}
                for name in [*proposals[turn:], *proposals[:turn]]:  # none is always first
                    if bitwise_exact or name not in AFTER_PREFILL:
                        known = Known(past, self.bins, hidden, self.transitions, self.heads, truth, bitwise_exact)
                        draft = PROPOSALS[name](known)
                        decision, milliseconds = frame.decode(draft, bitwise_exact)
                        record[mode][name] = _answer(frame, draft, decision, plain[mode], milliseconds)
            records.append(record)
            past = [truth, *past][:2]
        return records


def _answer(
    frame: Frame, draft: Draft | None, decision: Decision, plain: Decision, milliseconds: float
) -> Record:  # fmt: skip
    spared = draft.spared if isinstance(draft, Tree) else 0
    return {
        "drafted": frame.bins(decision.drafted),
        "passes": decision.passes - spared,
        "different": sum(ours != theirs for ours, theirs in zip(decision.tokens, plain.tokens, strict=True)),
        "ms": round(milliseconds, 3),
    }


def summary(episodes: Sequence[Sequence[Record]], mode: str, name: str) -> dict[str, Any] | None:
    """One proposal in one mode; None where it was never asked. Intervals resample episodes."""
    asked = [
        (str(number), record, record[mode][name])
        for number, records in enumerate(episodes)
        for record in records
        if name in record[mode]
    ]
    if not asked:
        return None
    passes = [answer["passes"] for _, _, answer in asked]
    row: dict[str, Any] = {
        "actions": len(asked),
        "actions that differ": sum(answer["different"] > 0 for _, _, answer in asked),
        "tokens that differ": sum(answer["different"] for _, _, answer in asked),
        "passes per action": cluster_interval(np.array(passes, float), [episode for episode, _, _ in asked]).to_json(),
        "passes": {str(count): passes.count(count) for count in sorted(set(passes))},
    }
    drafted = [one for one in asked if one[2]["drafted"]]
    if drafted:
        off = np.array([np.subtract(answer["drafted"], record["plain"]) for _, record, answer in drafted])
        of = [episode for episode, _, _ in drafted]
        phase = np.array([record["phase"] for _, record, _ in drafted])
        row["drafted"] = len(drafted)
        row["acceptance"] = _shares(off == 0, of, phase)
        row["acceptance"]["the whole action"] = cluster_interval((off == 0).all(1).astype(float), of, 1).to_json()
        row["at most one bin off"] = {"all": round(float((abs(off) <= 1).mean()), 4)} | {
            f"dimension {dim}": round(float((abs(off[:, dim]) <= 1).mean()), 4) for dim in range(off.shape[1])
        }
    return row


def _shares(right: NDArray[np.bool_], episodes: Sequence[str], phase: NDArray[np.str_]) -> dict[str, Any]:
    """Of all dimensions, of each, and of all in each phase: (actions, dims) -> name -> interval."""
    dims = right.shape[1]
    found = {"all": cluster_interval(right.mean(1), episodes, dims).to_json()}
    found |= {
        f"dimension {dim}": cluster_interval(right[:, dim].astype(float), episodes, 1).to_json() for dim in range(dims)
    }
    for name in PHASES:
        chosen = phase == name
        if chosen.any():
            of = [episode for episode, kept in zip(episodes, chosen, strict=True) if kept]
            found[name] = cluster_interval(right[chosen].mean(1), of, dims).to_json()
    return found


def times(episodes: Sequence[Sequence[Record]], proposals: Sequence[str]) -> dict[str, Any]:
    """Medians in milliseconds, and how much faster than plain decoding of the same mode; a pretence has no time."""
    records = [record for episode in episodes for record in episode]
    seen = float(np.median([record["seen ms"] for record in records]))
    found: dict[str, Any] = {"preprocess and vision ms": round(seen, 3)}
    for mode in MODES:
        taken = {
            name: float(np.mean([record[mode][name]["ms"] for record in records]))
            for name in proposals
            if name in records[0][mode] and not name.startswith("neighbours")
        }
        found[mode] = {
            name: {
                "decoder ms, mean": round(mean, 3),
                "decoder, times faster than plain": round(taken["none"] / mean, 3),
                "action, times faster than plain": round((seen + taken["none"]) / (seen + mean), 3),
            }
            for name, mean in taken.items()
        }
    return found


def kept(records: Sequence[Path]) -> list[list[Record]]:
    """Whole episodes of earlier runs; a line that was cut off is left out."""
    texts = [path.read_text(encoding="utf-8") for path in records if path.exists()]
    return [json.loads(line) for text in texts for line in text.split("\n")[:-1]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu.drafts", description=__doc__)
    parser.add_argument("--model", required=True, help="artifact or checkpoint of the demo policy")
    parser.add_argument("--unnorm-key")
    parser.add_argument("--world", type=int, choices=(1, 2), default=1)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--actions", type=int, default=0, help="go on until there were so many")
    parser.add_argument("--calibration", type=int, default=200, help="episodes that proposals learn from")
    parser.add_argument("--proposals", nargs="+", choices=list(PROPOSALS), default=list(PROPOSALS))
    parser.add_argument("--records", type=Path, nargs="+", default=[], help="one line an episode, added to the first")
    parser.add_argument("--start", type=int, default=0, help="number of the first episode")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(given.threads)
    policy = load(given.model, "cpu")
    every = list(dict.fromkeys([*SESSION, *given.proposals]))
    episodes = kept(given.records)
    if given.records and given.records[0].exists():
        whole, _, _ = given.records[0].read_text(encoding="utf-8").rpartition("\n")
        write_whole(given.records[0], whole + "\n" if whole else "")  # without the line that was cut off
    learn = given.calibration if len(episodes) < given.episodes else 0
    proposers = Proposers(policy, learn, given.world, given.unnorm_key)
    done = sum(map(len, episodes))
    while len(episodes) < given.episodes or done < given.actions:
        number = given.start + len(episodes)
        episodes.append(proposers.episode(number, every if len(episodes) < given.episodes else SESSION))
        done += len(episodes[-1])
        if given.records:
            with given.records[0].open("a", encoding="utf-8") as file:
                file.write(json.dumps(episodes[-1]) + "\n")
        if len(episodes) % 20 == 0:
            LOG.info("%d episodes, %d actions", len(episodes), done)
    result = {
        "version": 2,
        "kind": "drafts",
        "environment": environment(),
        "kernels": dict(policy.network.kernels),
        "world": given.world,
        "episodes": len(episodes),
        "episodes with every proposal": given.episodes,
        "episodes learnt from": given.calibration,
        "modes": {mode: {name: summary(episodes, mode, name) for name in every} for mode in MODES},
    }
    if given.time:
        result["times"] = times(episodes, every)
    write_whole(given.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"error: {error}")
