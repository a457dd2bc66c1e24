"""Training the demo policy, one stage at a time: `python -m benchmarks.demo_policy.train --stage act --run runs/act`.

The state is saved every few minutes, and a run that is started again continues exactly where it stood. Ctrl-C saves
first.
"""

import argparse
import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Final

import torch
from torch import Tensor, nn

from benchmarks import study
from benchmarks.demo_policy import measure, package, runs
from benchmarks.demo_policy.actor import Actor
from benchmarks.demo_policy.learner import Learner, demo_spec, initialise
from benchmarks.demo_policy.muon import Muon
from benchmarks.demo_policy.stages import STAGES, Stage, batches
from benchmarks.demo_policy.tokenizer import BINS
from edge_vla.demo.render import world
from edge_vla.demo.world import BLOCKS
from edge_vla.errors import UsageError
from edge_vla.model import OpenVLA

LOG: Final = logging.getLogger("benchmarks.demo_policy.train")
LOG_EVERY: Final = 50  # steps
Losses = Callable[[Learner, Mapping[str, Tensor], Tensor, Stage], dict[str, Tensor]]


def losses(learner: Learner, batch: Mapping[str, Tensor], softness: Tensor, stage: Stage) -> dict[str, Tensor]:
    """Each loss of a batch, and their weighted `total`."""
    patches = learner.patches(batch["images"])
    parts = learner.vision_losses(patches, batch)
    total = torch.stack(list(parts.values())).sum()
    if stage.language:
        spoken = learner.language_losses(patches, batch, softness)
        total = stage.vision * total + spoken["action"] + stage.pointer * spoken["pointer"]
        parts |= spoken
    return {**parts, "total": total}


def evaluate(learner: Learner, stage: Stage, episodes: int) -> dict[str, float]:
    """A row for the log: free-running, in bf16, with the weights that the learner holds at the moment."""
    policy = OpenVLA(learner.policy.spec).to(torch.bfloat16)
    policy.load_state_dict(package.plain(learner.policy.state_dict()))
    actor, look = Actor(policy), world(stage.look)
    row = measure.frames(actor, look, 256, stage.puts, wordings=stage.wordings, blocks=stage.blocks).log_row()
    if episodes and stage.blocks == BLOCKS:  # closed-loop episodes start on ordinary tables
        for kind in ("pick", "put") if stage.puts else ("pick",):
            found = measure.rates(measure.closed_loop(actor, look, episodes, kind))
            row |= {f"{kind} success": found.success, f"{kind} wrong object": found.wrong_object}
    return {name: round(value, 4) for name, value in row.items()}


class Averaged:
    """An exponential average of the trained weights, swapped in for evaluation."""

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], rate: float) -> None:
        self.named, self.rate = named, rate
        self.weights = {name: p.detach().clone() for name, p in named}

    @torch.no_grad()
    def update(self, step: int) -> None:
        rate = min(self.rate, (1 + step) / (10 + step))
        current = [parameter.detach() for _, parameter in self.named]
        torch._foreach_lerp_([self.weights[name] for name, _ in self.named], current, 1 - rate)

    @torch.no_grad()
    def swap(self) -> None:
        for name, parameter in self.named:
            kept = parameter.detach().clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(kept)


class Training:
    """A run in progress: the learner, its optimiser and averages, and the state on disk."""

    def __init__(self, learner: Learner, stage: Stage, run: Path, compute: Losses) -> None:
        """Continues what `run` holds; `done` is the number of steps made."""
        self.learner, self.stage, self.run, self.compute = learner, stage, run, compute
        self.optimiser = Muon(learner.named_parameters(), weight_decay=0.1)
        self.averaged = Averaged(self.optimiser.named, stage.average)
        self.config = {
            **asdict(stage),
            "softness": list(stage.softness),
            "blocks": list(stage.blocks),
            "trained": sorted(name for name, _ in self.optimiser.named),
        }
        self.done = 0
        if (state := runs.resume(run / "state.pt", self.config)) is not None:
            learner.load_state_dict(state["learner"])
            self.averaged.weights = state["averaged"]
            self.optimiser.restore(**state["optimiser"])
            self.done = state["step"]
        runs.trim(run / "log.jsonl", self.done)

    def step(self, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """One update; returns its losses."""
        stage, step = self.stage, self.done
        softness = torch.tensor(stage.softness_at(step) * 2.0 / BINS)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            parts = self.compute(self.learner, batch, softness, stage)
        torch.autograd.backward(parts["total"])
        factor = stage.rate_factor(step)
        self.optimiser.step(stage.matrix_rate * factor, stage.rate * factor)
        self.averaged.update(step)
        self.done += 1
        return {name: float(value.detach()) for name, value in parts.items()}

    def save(self) -> None:
        state = {
            "config": self.config,
            "step": self.done,
            "learner": self.learner.state_dict(),
            "averaged": self.averaged.weights,
            "optimiser": self.optimiser.state(),
        }
        runs.save(self.run / "state.pt", state)

    def evaluate(self, episodes: int) -> None:
        """Log what the averaged weights can do."""
        self.averaged.swap()
        row = evaluate(self.learner, self.stage, episodes)
        self.averaged.swap()
        runs.log(self.run / "log.jsonl", {"step": self.done, **row})
        LOG.info("%s step %d: %s", self.stage.name, self.done, row)


@dataclass
class Meter:
    """Mean losses and speed since the last row of the log."""

    training: Training
    sums: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    began: float = field(default_factory=time.perf_counter)

    def add(self, parts: Mapping[str, float]) -> None:
        self.steps += 1
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def log(self) -> None:
        stage, done = self.training.stage, self.training.done
        speed = self.steps * stage.batch / (time.perf_counter() - self.began)
        row = {name: round(value / self.steps, 4) for name, value in self.sums.items()}
        runs.log(self.training.run / "log.jsonl", {"step": done, "images a second": round(speed, 1), **row})
        LOG.info("%s step %d of %d, %.0f images/s, %s", stage.name, done, stage.steps, speed, row)
        self.sums, self.steps, self.began = {}, 0, time.perf_counter()


def train(
    learner: Learner,
    stage: Stage,
    run: Path,
    *,
    compiled: bool = True,
    workers: int = 1,
    save_every: int = 200,
    evaluate_every: int = 400,
    episodes: int = 24,
    until: int | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> None:
    """Train in place; on return the learner holds the averaged weights. Continues what `run` holds.

    Evaluates every `evaluate_every` steps and at the end; 0 is never. Saves and exits at step `until`, or after the
    step during which `interrupted()` became true, then with exit code 130.
    """
    training = Training(learner, stage, run, torch.compile(losses) if compiled else losses)
    if until is not None and training.done >= until:
        LOG.info("%s holds step %d already", run, training.done)
        sys.exit(0)
    meter = Meter(training)
    for batch in batches(stage, training.done, workers):
        meter.add(training.step(batch))
        done, last = training.done, training.done == stage.steps
        if done % LOG_EVERY == 0 or last:
            meter.log()
        stopped = interrupted()
        if done % save_every == 0 or last or stopped or done == until:
            training.save()
        stopped = stopped or interrupted()  # Ctrl-C during the save
        if stage.language and evaluate_every and (done % evaluate_every == 0 or last):
            training.evaluate(episodes)
            meter.began = time.perf_counter()
        if stopped or done == until:
            LOG.info("stopped at step %d; the same command continues", done)
            sys.exit(130 if stopped else 0)
    training.averaged.swap()


def fresh(prompts: int, seed: int = 0) -> Learner:
    """An untrained network."""
    torch.manual_seed(seed)
    policy = OpenVLA(demo_spec())
    initialise(policy, seed)
    return Learner(policy, prompts)


def begin(stage: Stage, source: Path | None, warm: Path | None = None) -> Learner:
    """A new network, or the averaged weights of the run `source`; for an adapter, those rounded as they ship.

    `warm` is an earlier run of the adapter, on this base or a similar one, whose factors to begin with.
    """
    learner = fresh(stage.prompts)
    if source is not None:
        runs.load_averaged(source, learner)
    if stage.name == "adapt":
        if source is None:
            raise UsageError("--stage adapt: name the finished run with --from; an adapter needs a trained base")
        from benchmarks.demo_policy import adapter  # peft

        rounded = {key: value.bfloat16().float() for key, value in learner.policy.state_dict().items()}
        learner.policy.load_state_dict(rounded)
        adapter.wrap(learner)
        if warm is not None:
            runs.load_averaged(warm, learner)
    return learner


class Interrupt:
    """Remembers Ctrl-C, so that training stops between two steps."""

    def __init__(self) -> None:
        self.received = False

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        self.received = True


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_policy.train", description=__doc__)
    parser.add_argument("--stage", required=True, choices=sorted(STAGES))
    parser.add_argument("--run", required=True, type=Path, help="directory of the run; an existing one is continued")
    parser.add_argument("--from", dest="source", type=Path, help="directory of the run whose weights to begin with")
    parser.add_argument("--warm", type=Path, help="for an adapter: directory of an earlier run of it to begin with")
    parser.add_argument("--steps", type=int, help="instead of the stage's own number")
    parser.add_argument("--until", type=int, help="stop after this step of the schedule, as Ctrl-C would")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    interrupt = Interrupt()
    signal.signal(signal.SIGINT, interrupt)
    stage = STAGES[given.stage]
    if given.steps is not None:
        if given.steps < 1:
            raise UsageError(f"--steps {given.steps}: at least 1")
        stage = replace(stage, steps=given.steps)
    learner = begin(stage, given.source, given.warm)
    train(
        learner,
        stage,
        given.run,
        compiled=not given.eager,
        until=given.until,
        interrupted=lambda: interrupt.received,
    )


if __name__ == "__main__":
    study.run(main)
