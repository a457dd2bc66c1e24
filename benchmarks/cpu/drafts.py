"""What drafts save: the demo policy in closed loop, every draft strategy on every frame.

    python -m benchmarks.cpu.drafts --model ARTIFACT --episodes 200 --actions 20000 --out RESULT.json

Plain decoding moves the arm, so that all strategies see the same frames and the same past. Each strategy decodes each
frame in two modes: bitwise exact, and with the draft verified in the prefill. Counted are first drafts that were right,
by dimension and by phase of the task, passes, and tokens that differ from plain decoding in the same mode (bitwise
exact there must be none). After `--episodes` only what a session does is measured, until there are `--actions`.
`--records` keeps each episode: the same command continues a run, and several files are summed (`--start` keeps two
runs on different episodes). `--time` adds what passes cost: for a quiet machine and few episodes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks import study
from benchmarks.cpu.draft_strategies import AFTER_PREFILL, STRATEGIES, Heads, Known, Transitions, Tree
from benchmarks.cpu.results import Acceptance, DraftCost, DraftsResult, StrategyResult
from edge_vla import typed_json
from edge_vla.bench.result import Interval
from edge_vla.bench.statistics import cluster_interval
from edge_vla.demo.instructions import phrase
from edge_vla.demo.render import render, world
from edge_vla.demo.world import EVALUATION_SEEDS, TRAINING_SEEDS, State, TaskKind, drive, start
from edge_vla.demo.world import Action as Move
from edge_vla.files import write_whole
from edge_vla.runtime import Action, Policy, load
from edge_vla.runtime.types import Bins, Draft

LOG: Final = logging.getLogger("benchmarks.cpu.drafts")
TASKS: Final[tuple[TaskKind, ...]] = ("pick", "put")
SESSION: Final = ("none", "previous")  # measured on every frame
MODES: Final[Mapping[str, bool]] = {"bitwise exact": True, "draft in prefill": False}
Phase = Literal["reach", "carry"]
Decide = Callable[[Image.Image, str, State], Action]


@dataclass(frozen=True)
class Attempt:
    """One strategy on one frame, in one mode."""

    drafted: tuple[int, ...]  # bins; empty where nothing was drafted
    passes: int
    different: int  # tokens
    decoder_ms: float


@dataclass(frozen=True)
class Record:
    """One action: what plain decoding gave, and every strategy's attempt by mode and name."""

    phase: Phase
    plain: tuple[int, ...]  # bins
    before_decoder_ms: float  # preprocessing and vision
    attempts: dict[str, dict[str, Attempt]]


class Strategies:
    """The strategies, with what they learned from the policy's own actions on seeds that nothing is measured on."""

    def __init__(self, policy: Policy, episodes: int, number: int, key: str | None) -> None:
        self.policy, self.world, self.key = policy, world(number), key
        self.bins = policy.config.spec.action.bins
        recorded, before, hidden = list[list[Bins]](), list[Bins | None](), list[torch.Tensor]()
        for episode in range(episodes):
            actions = list[Bins]()

            def learn(image: Image.Image, text: str, _: State, actions: list[Bins] = actions) -> Action:
                action = self._act(image, text, None, False)
                before.append(actions[-1] if actions else None)
                hidden.append(self._hidden(image, text))
                actions.append(self._bins(action.tokens))
                return action

            self._drive(TRAINING_SEEDS[-1 - episode], TASKS[episode % 2], learn)
            recorded.append(actions)
        self.transitions = Transitions.count(recorded)
        every = [action for actions in recorded for action in actions]
        LOG.info("strategies learn from %d actions", len(every))
        self.heads = {
            past: Heads(torch.stack(hidden), before, every, self.bins, past) for past in (False, True) if every
        }

    def episode(self, number: int, names: Sequence[str]) -> list[Record]:
        """The records of one episode; picks and puts alternate."""
        records = list[Record]()

        def decide(image: Image.Image, text: str, state: State) -> Action:
            turn = (number + len(records)) % len(names)
            order = [*names[turn:], *names[:turn]]
            past = [record.plain for record in records[:-3:-1]]
            plain, record = self._measure(image, text, state, past, order)
            records.append(record)
            return plain

        self._drive(EVALUATION_SEEDS[number // 2], TASKS[number % 2], decide)
        return records

    def _drive(self, seed: int, task: TaskKind, decide: Decide) -> None:
        """One episode, moved by the actions that `decide` returns."""
        state, asked = start(seed, task)
        text = phrase(asked, seed)

        def choose(state: State) -> Move:
            return decide(render(state, self.world), text, state).values

        for _ in drive(state, asked, choose):
            pass

    def _measure(
        self, image: Image.Image, text: str, state: State, past: Sequence[Bins], names: Sequence[str]
    ) -> tuple[Action, Record]:
        plain = {mode: self._act(image, text, None, exact) for mode, exact in MODES.items()}
        first = plain["bitwise exact"]
        truth = self._bins(first.tokens)
        hidden = self._hidden(image, text) if set(names) & set(AFTER_PREFILL) else torch.empty(0)
        attempts: dict[str, dict[str, Attempt]] = {mode: {} for mode in MODES}
        for mode, exact in MODES.items():
            for name in names:
                if exact or name not in AFTER_PREFILL:
                    known = Known(past, self.bins, hidden, self.transitions, self.heads, truth, exact)
                    attempts[mode][name] = self._attempt(image, text, STRATEGIES[name](known), exact, plain[mode])
        phase: Phase = "carry" if state.held is not None else "reach"
        before_ms = round(first.timing_ms["preprocess"] + first.timing_ms["vision"], 3)
        return first, Record(phase, truth, before_ms, attempts)

    def _attempt(self, image: Image.Image, text: str, draft: Draft | None, exact: bool, plain: Action) -> Attempt:
        action = self._act(image, text, draft, exact)
        return Attempt(
            drafted=self._bins(action.drafted),
            passes=action.passes - (draft.saved_passes if isinstance(draft, Tree) else 0),
            different=sum(one != other for one, other in zip(action.tokens, plain.tokens, strict=True)),
            decoder_ms=round(action.timing_ms["prefill"] + action.timing_ms["decode"], 3),
        )

    def _act(self, image: Image.Image, text: str, draft: Draft | None, exact: bool) -> Action:
        return self.policy.act(image, text, self.key, draft=draft, bitwise_exact=exact)

    def _hidden(self, image: Image.Image, text: str) -> torch.Tensor:
        """(width,) float32: the prefill's last row."""
        return self.policy.forced(image, text, (0,))[0].float().clone()

    def _bins(self, tokens: Sequence[int]) -> Bins:
        return tuple(token - self.policy.config.spec.action.first for token in tokens)


def summary(episodes: Sequence[Sequence[Record]], mode: str, name: str) -> StrategyResult | None:
    """One strategy in one mode; None where it was never measured. Intervals resample episodes."""
    found = [
        (str(number), record, record.attempts[mode][name])
        for number, records in enumerate(episodes)
        for record in records
        if name in record.attempts[mode]
    ]
    if not found:
        return None
    passes = [attempt.passes for _, _, attempt in found]
    return StrategyResult(
        strategy=name,
        bitwise_exact=MODES[mode],
        actions=len(found),
        different_actions=sum(attempt.different > 0 for _, _, attempt in found),
        different_tokens=sum(attempt.different for _, _, attempt in found),
        passes_per_action=cluster_interval(np.array(passes, float), [episode for episode, _, _ in found]),
        actions_by_passes={str(count): actions for count, actions in sorted(Counter(passes).items())},
        acceptance=acceptance([one for one in found if one[2].drafted]),
        cost=None,
    )


def acceptance(drafted: Sequence[tuple[str, Record, Attempt]]) -> Acceptance | None:
    """How often first drafts were right, from (episode, record, attempt) rows; None without any."""
    if not drafted:
        return None
    off = np.abs([np.subtract(attempt.drafted, record.plain) for _, record, attempt in drafted])  # (actions, dims)
    episodes = [episode for episode, _, _ in drafted]
    phases = np.array([record.phase for _, record, _ in drafted])
    right, dims = off == 0, off.shape[1]

    def of_phase(phase: Phase) -> Interval | None:
        rows = np.flatnonzero(phases == phase)
        return cluster_interval(right[rows].mean(1), [episodes[i] for i in rows], dims) if len(rows) else None

    return Acceptance(
        drafted_actions=len(drafted),
        overall=cluster_interval(right.mean(1), episodes, dims),
        by_dimension=[cluster_interval(column, episodes, 1) for column in right.T.astype(float)],
        reach=of_phase("reach"),
        carry=of_phase("carry"),
        whole_action=cluster_interval(right.all(1).astype(float), episodes, 1),
        within_one_bin=round(float((off <= 1).mean()), 4),
        within_one_bin_by_dimension=_rounded((off <= 1).mean(0)),
    )


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [round(float(value), 4) for value in values]


def cost(episodes: Sequence[Sequence[Record]], mode: str, name: str) -> DraftCost | None:
    """Mean times beside plain decoding in the same mode; None for a simulated strategy and one not measured."""
    records = [record for episode in episodes for record in episode if name in record.attempts[mode]]
    if not records or name.startswith("neighbours"):
        return None
    before = float(np.median([record.before_decoder_ms for record in records]))
    mean, plain = (float(np.mean([r.attempts[mode][one].decoder_ms for r in records])) for one in (name, "none"))
    return DraftCost(round(mean, 3), round(plain / mean, 3), round((before + plain) / (before + mean), 3))


def read_records(files: Sequence[Path]) -> list[list[Record]]:
    """Whole episodes of earlier runs; a line that was cut off is left out."""
    texts = [path.read_text(encoding="utf-8") for path in files if path.exists()]
    lines = [line for text in texts for line in text.split("\n")[:-1]]
    return [[typed_json.from_json(Record, record) for record in json.loads(line)] for line in lines]


def append_record(file: Path, episode: Sequence[Record]) -> None:
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps([dataclasses.asdict(record) for record in episode]) + "\n")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.cpu.drafts", description=__doc__)
    made.add_argument("--model", required=True, help="artifact or checkpoint of the demo policy")
    made.add_argument("--unnorm-key")
    made.add_argument("--world", type=int, choices=(1, 2), default=1)
    made.add_argument("--episodes", type=int, default=200, help="with every strategy")
    made.add_argument("--actions", type=int, default=0, help="continue until there are so many")
    made.add_argument("--calibration", type=int, default=200, help="episodes that strategies learn from")
    made.add_argument("--strategies", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES))
    made.add_argument("--records", type=Path, nargs="+", default=[], help="a line an episode, appended to the first")
    made.add_argument("--start", type=int, default=0, help="number of the first episode")
    made.add_argument("--time", action="store_true", help="report what passes cost")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--out", type=Path, required=True, help="result file")
    return made


def main() -> None:
    given = parser().parse_args()
    torch.set_num_threads(given.threads)
    policy = load(given.model, "cpu")
    names = list(dict.fromkeys([*SESSION, *given.strategies]))
    episodes = read_records(given.records)
    if given.records and given.records[0].exists():
        whole, _, _ = given.records[0].read_text(encoding="utf-8").rpartition("\n")
        write_whole(given.records[0], whole + "\n" if whole else "")  # without a line that was cut off
    training_episodes = given.calibration if len(episodes) < given.episodes else 0
    strategies = Strategies(policy, training_episodes, given.world, given.unnorm_key)
    actions = sum(map(len, episodes))
    while len(episodes) < given.episodes or actions < given.actions:
        wanted = names if len(episodes) < given.episodes else SESSION
        episodes.append(strategies.episode(given.start + len(episodes), wanted))
        actions += len(episodes[-1])
        if given.records:
            append_record(given.records[0], episodes[-1])
        if len(episodes) % 20 == 0:
            LOG.info("%d episodes, %d actions", len(episodes), actions)
    rows = [row for mode in MODES for name in names if (row := summary(episodes, mode, name))]
    before_ms = None
    if given.time:
        mode_of = {exact: mode for mode, exact in MODES.items()}
        rows = [dataclasses.replace(r, cost=cost(episodes, mode_of[r.bitwise_exact], r.strategy)) for r in rows]
        before_ms = round(float(np.median([r.before_decoder_ms for episode in episodes for r in episode])), 3)
    result = DraftsResult(
        kernels=dict(policy.network.kernels),
        world=given.world,
        episodes=len(episodes),
        episodes_with_all_strategies=given.episodes,
        training_episodes=given.calibration,
        preprocess_and_vision_ms=before_ms,
        strategies=rows,
    )
    study.write_result(given.out, result)


if __name__ == "__main__":
    study.run(main)
