"""What the engine answers: the demo policy beside torch's reference of the same format, and 7B shapes beside our bf16.

A token may differ from the reference's where rounding alone could have moved it, and only there. Knows tokens and
leads; knows nothing of clocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.gpu import weights
from benchmarks.gpu.forms import FORMS, load
from benchmarks.gpu.run import Run, reason
from benchmarks.gpu.systems import Task, Tokens
from edge_vla.artifact import Artifact
from edge_vla.checkpoint import Checkpoint, open_checkpoint
from edge_vla.demo import BASE
from edge_vla.demo.instructions import phrase
from edge_vla.demo.render import render, world
from edge_vla.demo.world import EVALUATION_SEEDS, start
from edge_vla.runtime import load as load_policy
from edge_vla.runtime.gpu.device import Backend
from edge_vla.runtime.gpu.load import from_artifact
from edge_vla.runtime.noise import rounding_noise
from edge_vla.runtime.policy import Policy

NOISE: Final = 99  # percentile of what rounding does to a lead
Frames = Sequence[tuple[Image.Image, str]]


def demo_tokens(run: Run) -> dict[str, Any]:
    """The demo policy in each form, engine against torch's reference of the same format, on frames of its world."""
    source = open_checkpoint(BASE)
    drawn = [(seed, *start(seed, "pick" if seed % 2 else "put")) for seed in EVALUATION_SEEDS[: run.scale.frames]]
    frames = [(render(state, world(1)), phrase(task, seed)) for seed, state, task in drawn]
    floor, rows = _noise(frames, run.device), list[dict[str, Any]]()
    for name in FORMS:
        try:
            ours, slow = (_demo(run, source, name, backend) for backend in (run.backend, "reference"))
            rows.append({"form": name, **_compare(ours, slow, frames, floor)})
        except Exception as error:  # noqa: BLE001 - whatever a form raises is its row
            rows.append({"form": name, "failed": reason(error)})
    return {"frames": len(frames), "noise_p99": floor, "forms": rows}


def _demo(run: Run, source: Checkpoint, form: str, backend: Backend) -> Policy:
    bits, vision_bits, activations = FORMS[form]
    directory = run.scratch / f"demo-{bits}-{vision_bits}"
    made = directory.exists()
    artifact = Artifact(directory) if made else weights.write(directory, source, bits, vision_bits, run.device)
    engine = from_artifact(artifact, torch.bfloat16, run.device, backend, activations)
    return Policy(engine, source.config, source.tokenizer_json)


def _compare(ours: Policy, slow: Policy, frames: Frames, floor: float) -> dict[str, Any]:
    """Frames with equal tokens; of the others, how many first differ where the lead is above the floor."""
    equal, above = 0, 0
    for image, text in frames:
        got, expected = ours.act(image, text), slow.act(image, text)
        pairs = zip(got.tokens, expected.tokens, expected.margins, strict=True)
        leads = [lead for one, two, lead in pairs if one != two]
        equal, above = equal + (not leads), above + (bool(leads) and leads[0] > floor)
    return {"equal": equal, "differ_above_the_noise": above}


def _noise(frames: Frames, device: torch.device) -> float:
    """How far rounding alone moves a lead, its 99th percentile: the bf16 policy and itself with every block shaken."""
    reference = load_policy(BASE, device.type)
    moved = list[Tensor]()
    for image, text in frames:
        tokens = reference.act(image, text).tokens
        plain = reference.network.head.logits(reference.forced(image, text, tokens))
        with rounding_noise(reference.network, 0):
            other = reference.network.head.logits(reference.forced(image, text, tokens))
        top = plain.topk(2, dim=-1).indices
        moved.append((_lead(plain, top) - _lead(other, top)).abs().flatten().cpu())
    return float(np.percentile(torch.cat(moved).numpy(), NOISE))


def _lead(logits: Tensor, top: Tensor) -> Tensor:
    chosen = logits.gather(1, top)
    return chosen[:, 0] - chosen[:, 1]


def agreement(run: Run) -> dict[str, Any]:
    """At full size with random weights: each form's tokens and leads beside our own bf16, and beside its reference."""
    task = Task.make(run.checkpoint, run.scale.pictures, run.scale.text, run.scale.dims, run.device)
    truth, rows = _answers(run, task, "bf16", run.backend), list[dict[str, Any]]()
    for name in FORMS:
        try:
            rows.append({"form": name, **_agrees(run, task, name, truth)})
        except Exception as error:  # noqa: BLE001 - whatever a form raises is its row
            rows.append({"form": name, "failed": reason(error)})
    return {"pictures": len(task.pixels), "forms": rows}


def _agrees(run: Run, task: Task, form: str, truth: Sequence[Tokens]) -> dict[str, float]:
    got = _answers(run, task, form, run.backend)
    slow = _answers(run, replace(task, pixels=task.pixels[:2]), form, "reference")
    return {
        "tokens_equal_to_bf16": _equal(got, truth),
        "first_tokens_equal_to_bf16": _equal([one[:1] for one in got], [one[:1] for one in truth]),
        "tokens_equal_to_reference": _equal(got[: len(slow)], slow),
    }


def _answers(run: Run, task: Task, form: str, backend: Backend) -> list[Tokens]:
    engine = load(run, form, backend)
    return [engine.decide(task.prompt, pixels, task.dims).tokens for pixels in task.pixels]


def _equal(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> float:
    pairs = [(one, two) for a, b in zip(ours, theirs, strict=True) for one, two in zip(a, b, strict=True)]
    return sum(one == two for one, two in pairs) / len(pairs)
