"""Training the demo policy, one stage at a time: `python -m benchmarks.demo_policy.train --stage act --run runs/act`.

A stage is a row of the table below. Batch n depends on the stage and n alone, the state is saved every few
minutes, and a run that is started again continues exactly where it stood. Ctrl-C saves first.
"""

import argparse
import logging
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.demo_policy import learner as learning
from benchmarks.demo_policy import measure, package, runs, samples
from benchmarks.demo_policy.actor import Actor
from benchmarks.demo_policy.muon import Muon
from benchmarks.demo_policy.tokenizer import BINS
from edge_vla.demo.render import world
from edge_vla.demo.world import BLOCKS
from edge_vla.errors import EdgeVLAError, UsageError
from edge_vla.model import OpenVLA

LOG: Final = logging.getLogger("benchmarks.demo_policy.train")
_stop = False  # set by the signal handler, read between steps


@dataclass(frozen=True, slots=True)
class Stage:
    """What is trained on what, and how the rates move: up over `warmup` steps, down over the last `decay` of them."""

    name: str
    steps: int
    first_seed: int
    batch: int = 64
    prompts: int = 4
    look: int = 1
    language: bool = True
    puts: bool = True
    wordings: int = 64
    blocks: tuple[int, int] = BLOCKS
    misled: float = 0.5  # share of prompts that are continued with misleading action tokens
    frames: int = 0  # 0: fresh frames for ever; else so many, again and again
    matrix_rate: float = 0.006
    rate: float = 1e-3
    warmup: int = 60
    decay: float = 0.0
    softness: tuple[float, float] = (2.0, 2.0)  # of the labels in bins, at the start and at the end
    vision: float = 0.3
    pointer: float = 0.3
    average: float = 0.995

    def draw(self, first: int, count: int) -> samples.Batch:
        """The frames of `count` seeds."""
        return samples.batch(
            world(self.look), first, count, self.prompts, self.puts, self.wordings, self.blocks, self.misled
        )


STAGES: Final[Mapping[str, Stage]] = {
    stage.name: stage
    for stage in (
        Stage("overfit", steps=600, first_seed=0, prompts=2, frames=192, misled=0.0, decay=0.6, softness=(1.0, 0.5),
              average=0.98),
        Stage("see", steps=900, first_seed=100_000_000, batch=64, language=False, prompts=1, decay=0.3),
        Stage("look", steps=500, first_seed=150_000_000, language=False, prompts=1, decay=0.6),
        Stage("two", steps=800, first_seed=180_000_000, prompts=2, puts=False, wordings=1, blocks=(2, 2), decay=0.7,
              softness=(2.0, 1.5)),
        Stage("act", steps=1800, first_seed=200_000_000, decay=0.8, softness=(2.0, 1.5)),
        Stage("finish", steps=1100, first_seed=300_000_000, matrix_rate=0.0045, warmup=20, decay=0.9,
              softness=(2.0, 1.0)),
        Stage("adapt", steps=700, first_seed=400_000_000, look=2, rate=3e-3, decay=0.7, average=0.98),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Frames(Dataset[dict[str, NDArray[np.generic]]]):
    """Batch n of a stage."""

    stage: Stage

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, index: int) -> dict[str, NDArray[np.generic]]:
        stage = self.stage
        offset = index * stage.batch
        if stage.frames:
            offset %= stage.frames
        return stage.draw(stage.first_seed + offset, stage.batch).arrays()


def batches(stage: Stage, first: int, workers: int) -> Iterator[dict[str, Tensor]]:
    loader: DataLoader[dict[str, NDArray[np.generic]]] = DataLoader(
        Frames(stage),
        batch_size=None,
        sampler=range(first, stage.steps),
        num_workers=workers,
        prefetch_factor=8 if workers else None,
    )
    for arrays in loader:
        yield {name: torch.as_tensor(array) for name, array in arrays.items()}


def progress(stage: Stage, step: int) -> float:
    """The factor on both rates at a step."""
    up = min(1.0, (step + 1) / stage.warmup)
    falling = stage.steps * stage.decay
    down = min(1.0, (stage.steps - step) / falling) if falling else 1.0
    return up * down


def losses(learner: learning.Learner, batch: Mapping[str, Tensor], softness: Tensor, stage: Stage) -> dict[str, Tensor]:
    patches = learner.patches(batch["images"])
    parts = learner.vision_losses(patches, batch)
    total = torch.stack(list(parts.values())).sum()
    if stage.language:
        spoken = learner.language_losses(patches, batch, softness)
        total = stage.vision * total + spoken["action"] + stage.pointer * spoken["pointer"]
        parts |= spoken
    return {**parts, "total": total}


def evaluate(learner: learning.Learner, stage: Stage, episodes: int) -> dict[str, float]:
    """Free-running, in bf16, with the averaged weights that the learner holds at the moment."""
    policy = OpenVLA(learner.policy.spec).to(torch.bfloat16)
    policy.load_state_dict(package.plain(learner.policy.state_dict()))
    actor, look = Actor(policy), world(stage.look)
    found = measure.frames(actor, look, 256, stage.puts, wordings=stage.wordings, blocks=stage.blocks)
    if episodes and stage.blocks == BLOCKS:  # episodes begin on ordinary tables
        for kind in ("pick", "put") if stage.puts else ("pick",):
            rows = measure.closed_loop(actor, look, episodes, kind)
            found |= {f"{kind} {name}": value for name, value in measure.rates(rows).items()}
    return found


class Averaged:
    """An exponential average of what is trained, swapped in for evaluation."""

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


def _ask_to_stop(_signal: int, _frame: FrameType | None) -> None:
    global _stop  # a signal handler has nowhere else to put it
    _stop = True


def train(
    learner: learning.Learner,
    stage: Stage,
    run: Path,
    *,
    compiled: bool = True,
    workers: int = 1,
    save_every: int = 200,
    evaluate_every: int = 400,
    episodes: int = 24,
    until: int | None = None,
) -> None:
    """Trains in place; on return the learner holds the averaged weights. Continues what `run` holds.

    Evaluates every `evaluate_every` steps and at the end; 0 is never. At step `until`, or where it is passed
    already, it saves and exits.
    """
    optimiser = Muon(learner.named_parameters(), weight_decay=0.1)
    averaged = Averaged(optimiser.named, stage.average)
    config = {
        **asdict(stage),
        "softness": list(stage.softness),
        "blocks": list(stage.blocks),
        "trained": sorted(n for n, _ in optimiser.named),
    }
    state_path, log_path = run / "state.pt", run / "log.jsonl"
    done = 0
    if (state := runs.resume(state_path, config)) is not None:
        learner.load_state_dict(state["learner"])
        averaged.weights = state["averaged"]
        optimiser.restore(**state["optimiser"])
        done = state["step"]
    runs.trim(log_path, done)
    if until is not None and done >= until:
        LOG.info("%s holds step %d already", run, done)
        sys.exit(0)

    def save(step: int) -> None:
        state = {
            "config": config,
            "step": step,
            "learner": learner.state_dict(),
            "averaged": averaged.weights,
            "optimiser": optimiser.state(),
        }
        runs.save(state_path, state)

    compute = torch.compile(losses) if compiled else losses
    sums: dict[str, float] = {}
    began, counted = time.perf_counter(), 0
    for step, batch in enumerate(batches(stage, done, workers), start=done):
        factor = progress(stage, step)
        start_bins, end_bins = stage.softness
        bins = start_bins + (end_bins - start_bins) * step / stage.steps
        softness = torch.tensor(bins * 2.0 / BINS)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            parts = compute(learner, batch, softness, stage)
        torch.autograd.backward(parts["total"])
        optimiser.step(stage.matrix_rate * factor, stage.rate * factor)
        averaged.update(step)
        counted += 1
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        now, last = step + 1, step + 1 == stage.steps
        if now % 50 == 0 or last:
            speed = counted * stage.batch / (time.perf_counter() - began)
            row = {name: round(value / counted, 4) for name, value in sums.items()}
            runs.log(log_path, {"step": now, "images a second": round(speed, 1), **row})
            LOG.info("%s step %d of %d, %.0f images/s, %s", stage.name, now, stage.steps, speed, row)
            sums, began, counted = {}, time.perf_counter(), 0
        if now % save_every == 0 or last or _stop or now == until:
            save(now)
        if stage.language and evaluate_every and (now % evaluate_every == 0 or last):
            averaged.swap()
            found = {name: round(value, 4) for name, value in evaluate(learner, stage, episodes).items()}
            averaged.swap()
            runs.log(log_path, {"step": now, **found})
            LOG.info("%s step %d: %s", stage.name, now, found)
            began = time.perf_counter()
        if _stop or now == until:
            LOG.info("stopped at step %d; the same command continues", now)
            sys.exit(130 if _stop else 0)
    averaged.swap()


def fresh(prompts: int, seed: int = 0) -> learning.Learner:
    torch.manual_seed(seed)
    policy = OpenVLA(learning.demo_spec())
    learning.initialise(policy, seed)
    return learning.Learner(policy, prompts)


def begin(stage: Stage, source: Path | None, warm: Path | None = None) -> learning.Learner:
    """A new network, or the averaged weights of an earlier run; for an adapter, those rounded as they ship.

    `warm` is an earlier run of the adapter, on this base or one like it, whose factors to begin with.
    """
    learner = fresh(stage.prompts)
    if source is not None:
        learner.load_state_dict({**learner.state_dict(), **runs.load(source / "state.pt")["averaged"]})
    if stage.name == "adapt":
        if source is None:
            raise UsageError("--stage adapt: name the finished run with --from; an adapter needs a trained base")
        from benchmarks.demo_policy import adapter

        rounded = {key: value.bfloat16().float() for key, value in learner.policy.state_dict().items()}
        learner.policy.load_state_dict(rounded)
        adapter.wrap(learner)
        if warm is not None:
            learner.load_state_dict({**learner.state_dict(), **runs.load(warm / "state.pt")["averaged"]})
    return learner


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_policy.train", description=__doc__)
    parser.add_argument("--stage", required=True, choices=sorted(STAGES))
    parser.add_argument("--run", required=True, type=Path, help="folder of the run; one that exists is continued")
    parser.add_argument("--from", dest="source", type=Path, help="folder of the run whose weights to begin with")
    parser.add_argument("--warm", type=Path, help="for an adapter: folder of an earlier run of it to begin with")
    parser.add_argument("--steps", type=int, help="instead of the stage's own number")
    parser.add_argument("--until", type=int, help="stop after this step of the schedule, as Ctrl-C would")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    signal.signal(signal.SIGINT, _ask_to_stop)
    stage = STAGES[arguments.stage]
    if arguments.steps is not None:
        if arguments.steps < 1:
            raise UsageError(f"--steps {arguments.steps}: at least 1")
        stage = replace(stage, steps=arguments.steps)
    learner = begin(stage, arguments.source, arguments.warm)
    train(learner, stage, arguments.run, compiled=not arguments.eager, until=arguments.until)


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"{type(error).__name__}: {error}")
