"""The two small problems that come before the whole one: `python -m benchmarks.demo_policy.ladder --overfit RUN …`.

A network that cannot learn 192 frames by heart has a bug; one that cannot tell left from right for two blocks
and one sentence will not learn six colours and two tasks. Measures trained runs; `train.py` trains them.
"""

import argparse
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from benchmarks.demo_policy import measure, package, runs, samples
from benchmarks.demo_policy.actor import Actor
from benchmarks.demo_policy.ship import averaged
from benchmarks.demo_policy.train import STAGES, Stage, fresh
from edge_vla.bench.provenance import environment
from edge_vla.bench.statistics import wilson
from edge_vla.demo.render import world
from edge_vla.errors import EdgeVLAError, UsageError
from edge_vla.files import write_whole
from edge_vla.model import OpenVLA

LOG: Final = logging.getLogger("benchmarks.demo_policy.ladder")
FIRST: Final = 1  # the prompt's first token, which batches leave out


def trained(run: Path) -> Actor:
    """A run's averaged weights, ready to answer."""
    learner = fresh(prompts=1)
    averaged(run, learner)
    policy = OpenVLA(learner.policy.spec).to(torch.bfloat16)
    policy.load_state_dict(package.plain(learner.policy.state_dict()))
    return Actor(policy)


def by_heart(actor: Actor, stage: Stage) -> dict[str, Any]:
    """Free-running answers to every prompt of the frames that a stage repeats, against the expert's tokens."""
    if not stage.frames:
        raise UsageError(f"stage {stage.name} never sees a frame twice: there is nothing to know by heart")
    drawn = stage.draw(stage.first_seed, stage.frames)
    images, prompts = [], []
    for frame, answers in enumerate(drawn.answers):
        for prompt, last in enumerate(answers):
            images.append(Image.fromarray(drawn.images[frame]))
            prompts.append([FIRST, *drawn.tokens[frame, prompt, : last + 1].tolist()])
    wanted = drawn.actions.reshape(len(prompts), -1).astype(np.float64)
    tokens = actor.decode(images, prompts)
    away = np.abs(tokens - samples.spoken(wanted))
    right = away == 0
    answered = samples.TOKENS.centres[samples.TOKENS.bins(tokens.ravel().tolist())].reshape(wanted.shape)
    moving = np.abs(wanted[:, 0]) > measure.MOVING
    signs = np.sign(answered[moving, 0]) == np.sign(wanted[moving, 0])
    return {
        "frames": stage.frames,
        "prompts": len(prompts),
        "tokens": round(float(right.mean()), 4),
        "tokens within one bin": round(float((away <= 1).mean()), 4),
        "all seven": round(float(right.all(axis=1).mean()), 4),
        **{f"exact {name}": round(float(right[:, i].mean()), 4) for i, name in enumerate(measure.NAMES)},
        "dx sign": round(float(signs.mean()), 4),
    }


def fresh_frames(actor: Actor, stage: Stage, count: int) -> dict[str, Any]:
    """Free-running answers to frames like the stage's that were never trained on."""
    found = measure.frames(actor, world(stage.look), count, stage.puts, wordings=stage.wordings, blocks=stage.blocks)
    signs = round(found["dx sign"] * found["moving"])
    interval = [round(bound, 4) for bound in wilson(signs, round(found["moving"]))]
    return {"frames": count, **{name: round(value, 4) for name, value in found.items()}, "dx sign 95%": interval}


def rung(run: Path, name: str, count: int) -> dict[str, Any]:
    """One rung: how the run was configured, what it cost, what it can do."""
    state = runs.load(run / "state.pt")
    if state["config"]["name"] != name:
        raise UsageError(f"{run} is a run of stage {state['config']['name']}, not of {name}")
    stage, actor = STAGES[name], trained(run)
    if state["config"] != {**state["config"], **json.loads(json.dumps(asdict(stage)))}:
        raise UsageError(f"{run} was trained with other settings than stage {name} has now: train it again")
    measured = by_heart(actor, stage) if stage.frames else fresh_frames(actor, stage, count)
    pictures = {"steps": state["step"], "pictures": state["step"] * stage.batch}
    return {"stage": json.loads(json.dumps(asdict(stage))), **pictures, "free running": measured}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_policy.ladder", description=__doc__)
    parser.add_argument("--overfit", required=True, type=Path, help="finished run of stage overfit")
    parser.add_argument("--two", required=True, type=Path, help="finished run of stage two")
    parser.add_argument("--frames", type=int, default=2000, help="fresh ones, for stage two")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    rungs = {}
    for name, run in (("overfit", arguments.overfit), ("two", arguments.two)):
        rungs[name] = rung(run, name, arguments.frames)
        LOG.info("%s: %s", name, rungs[name]["free running"])
    result = {
        "version": 1,
        "kind": "demo ladder",
        "what": "small problems before the whole one; plain torch bf16, greedy, the policy reads its own tokens",
        **environment(),
        "rungs": rungs,
    }
    write_whole(arguments.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"{type(error).__name__}: {error}")
