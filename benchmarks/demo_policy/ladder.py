"""Two small problems that precede the whole one: `python -m benchmarks.demo_policy.ladder --overfit RUN --two RUN …`.

A network that cannot memorise 192 frames has a bug; one that cannot tell left from right with two blocks and one
sentence will not learn six colours and two tasks. Measures finished runs of `train`.
"""

import argparse
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from benchmarks import study
from benchmarks.demo_policy import measure, package, runs, samples
from benchmarks.demo_policy.actor import Actor
from benchmarks.demo_policy.results import LadderResult, Memorised, Rung
from benchmarks.demo_policy.stages import STAGES, Stage
from benchmarks.demo_policy.train import fresh
from edge_vla.bench.statistics import wilson
from edge_vla.demo.render import world
from edge_vla.errors import UsageError
from edge_vla.model import OpenVLA

LOG: Final = logging.getLogger("benchmarks.demo_policy.ladder")
FIRST: Final = 1  # the prompt's first token, which batches leave out


def trained(run: Path) -> Actor:
    """A run's averaged weights, in bf16."""
    learner = fresh(prompts=1)
    runs.load_averaged(run, learner)
    policy = OpenVLA(learner.policy.spec).to(torch.bfloat16)
    policy.load_state_dict(package.plain(learner.policy.state_dict()))
    return Actor(policy)


def memorised(actor: Actor, stage: Stage) -> Memorised:
    """Free-running predictions for every prompt of the frames that a stage repeats, against the expert's tokens."""
    if not stage.frames:
        raise UsageError(f"stage {stage.name} repeats no frames: there is nothing to memorise")
    drawn = stage.draw(stage.first_seed, stage.frames)
    images, prompts = [], []
    for frame, starts in enumerate(drawn.answer_starts):
        for prompt, last in enumerate(starts):
            images.append(Image.fromarray(drawn.images[frame]))
            prompts.append([FIRST, *drawn.tokens[frame, prompt, : last + 1].tolist()])
    wanted = drawn.actions.reshape(len(prompts), -1).astype(np.float64)
    tokens = actor.decode(images, prompts)
    apart = np.abs(tokens - samples.label_tokens(wanted))
    right = apart == 0
    predicted = samples.TOKENS.centres[samples.TOKENS.bins(tokens.ravel().tolist())].reshape(wanted.shape)
    moving = np.abs(wanted[:, 0]) > measure.MOVING
    signs = np.sign(predicted[moving, 0]) == np.sign(wanted[moving, 0])
    return Memorised(
        frames=stage.frames,
        prompts=len(prompts),
        tokens=round(float(right.mean()), 4),
        within_one_bin=round(float((apart <= 1).mean()), 4),
        whole_actions=round(float(right.all(axis=1).mean()), 4),
        exact_by_dimension={name: round(float(right[:, i].mean()), 4) for i, name in enumerate(measure.NAMES)},
        dx_sign=round(float(signs.mean()), 4),
    )


def rung(run: Path, name: str, count: int) -> Rung:
    """One small problem: how its run was configured, what it cost, what it learned. `count` fresh frames, if any."""
    state = runs.load(run / "state.pt")
    if state["config"]["name"] != name:
        raise UsageError(f"{run} is a run of stage {state['config']['name']}, expected {name}")
    stage, actor = STAGES[name], trained(run)
    config: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(stage)))
    if state["config"] != {**state["config"], **config}:
        raise UsageError(f"{run} was trained with other settings than stage {name} has now: train it again")
    steps: int = state["step"]
    if stage.frames:
        return Rung(config, steps, steps * stage.batch, memorised(actor, stage), None, None, None)
    look = world(stage.look)
    accuracy = measure.frames(actor, look, count, stage.puts, wordings=stage.wordings, blocks=stage.blocks)
    interval = measure.rounded(wilson(round(accuracy.dx_sign * accuracy.moving_frames), accuracy.moving_frames))
    return Rung(config, steps, steps * stage.batch, None, accuracy, count, interval)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_policy.ladder", description=__doc__)
    parser.add_argument("--overfit", required=True, type=Path, help="finished run of stage overfit")
    parser.add_argument("--two", required=True, type=Path, help="finished run of stage two")
    parser.add_argument("--frames", type=int, default=2000, help="fresh frames, for stage two")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", required=True, type=Path, help="result file")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rungs = {}
    for name, run in (("overfit", given.overfit), ("two", given.two)):
        rungs[name] = rung(run, name, given.frames)
        LOG.info("%s: %s", name, rungs[name].memorised or rungs[name].fresh)
    study.write_result(given.out, LadderResult(rungs))


if __name__ == "__main__":
    study.run(main)
