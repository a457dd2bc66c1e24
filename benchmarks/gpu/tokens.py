"""What the engine decides: the demo policy against torch's reference of the same format, 7B shapes against our bf16.

A token may differ from the reference's where rounding alone could have moved it, and only there. Knows tokens and
margins; knows nothing of clocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.gpu import weights
from benchmarks.gpu.configurations import BF16, CONFIGURATIONS, Configuration, load
from benchmarks.gpu.result import Agreement, AgreementRow, DemoRow, DemoTokens
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

PERCENTILE: Final = 99  # of what rounding noise does to a margin
SLOW_PICTURES: Final = 2  # that the reference kernels decide at full size
Frames = Sequence[tuple[Image.Image, str]]


def demo_tokens(run: Run) -> DemoTokens:
    """The demo policy in each configuration, engine against torch's reference, on frames of its world."""
    source = open_checkpoint(BASE)
    drawn = [(seed, *start(seed, "pick" if seed % 2 else "put")) for seed in EVALUATION_SEEDS[: run.scale.frames]]
    frames = [(render(state, world(1)), phrase(task, seed)) for seed, state, task in drawn]
    noise, rows = _noise_p99(frames, run.device), list[DemoRow]()
    for configuration in CONFIGURATIONS:
        try:
            ours, slow = (demo_policy(run, source, configuration, backend) for backend in (run.backend, "reference"))
            equal, flips = _compare(ours, slow, frames, noise)
            rows.append(DemoRow(configuration.name, equal_frames=equal, high_margin_flips=flips))
        except Exception as error:  # noqa: BLE001 - whatever a configuration raises is its row
            rows.append(DemoRow(configuration.name, failed=reason(error)))
    return DemoTokens(len(frames), noise, rows)


def demo_policy(run: Run, source: Checkpoint, configuration: Configuration, backend: Backend) -> Policy:
    bits, vision_bits = configuration.bits, configuration.vision_bits
    directory = run.scratch / f"demo-{bits}-{vision_bits}"
    made = directory.exists()
    artifact = Artifact(directory) if made else weights.write(directory, source, bits, vision_bits, run.device)
    engine = from_artifact(artifact, torch.bfloat16, run.device, backend, configuration.activations)
    return Policy(engine, source.config, source.tokenizer_json)


def _compare(ours: Policy, slow: Policy, frames: Frames, noise: float) -> tuple[int, int]:
    """Frames with equal tokens; of the others, those whose first flip is of a margin above the noise."""
    equal = flips = 0
    for image, text in frames:
        got, expected = ours.act(image, text), slow.act(image, text)
        pairs = zip(got.tokens, expected.tokens, expected.margins, strict=True)
        flipped = [margin for one, two, margin in pairs if one != two]
        equal, flips = equal + (not flipped), flips + (bool(flipped) and flipped[0] > noise)
    return equal, flips


def _noise_p99(frames: Frames, device: torch.device) -> float:
    """How far rounding alone moves a margin: the bf16 policy against itself with rounding noise in every block."""
    reference = load_policy(BASE, device.type)
    moved = list[Tensor]()
    for image, text in frames:
        tokens = reference.act(image, text).tokens
        plain = reference.network.head.logits(reference.forced(image, text, tokens))
        with rounding_noise(reference.network, 0):
            noisy = reference.network.head.logits(reference.forced(image, text, tokens))
        top = plain.topk(2, dim=-1).indices
        moved.append((_difference(plain, top) - _difference(noisy, top)).abs().flatten().cpu())
    return float(np.percentile(torch.cat(moved).numpy(), PERCENTILE))


def _difference(logits: Tensor, top: Tensor) -> Tensor:
    chosen = logits.gather(1, top)
    return chosen[:, 0] - chosen[:, 1]


def agreement(run: Run) -> Agreement:
    """At full size with random weights: each configuration's tokens against our bf16 and against its reference."""
    task = Task.make(run.checkpoint, run.scale.pictures, run.scale.prompt, run.scale.dims, run.device)
    truth, rows = tokens_of(run, task, BF16, run.backend), list[AgreementRow]()
    for configuration in CONFIGURATIONS:
        try:
            rows.append(_agreement(run, task, configuration, truth))
        except Exception as error:  # noqa: BLE001 - whatever a configuration raises is its row
            rows.append(AgreementRow(configuration.name, failed=reason(error)))
    return Agreement(len(task.pixels), rows)


def _agreement(run: Run, task: Task, configuration: Configuration, truth: Sequence[Tokens]) -> AgreementRow:
    got = tokens_of(run, task, configuration, run.backend)
    slow = tokens_of(run, replace(task, pixels=task.pixels[:SLOW_PICTURES]), configuration, "reference")
    return AgreementRow(
        configuration.name,
        equal_to_bf16=_equal(got, truth),
        first_token_equal_to_bf16=_equal([one[:1] for one in got], [one[:1] for one in truth]),
        equal_to_reference=_equal(got[: len(slow)], slow),
    )


def tokens_of(run: Run, task: Task, configuration: Configuration, backend: Backend) -> list[Tokens]:
    engine = load(run, configuration, backend)
    return [engine.decide(task.prompt, pixels, task.dims).tokens for pixels in task.pixels]


def _equal(ours: Sequence[Tokens], theirs: Sequence[Tokens]) -> float:
    pairs = [(one, two) for a, b in zip(ours, theirs, strict=True) for one, two in zip(a, b, strict=True)]
    return sum(one == two for one, two in pairs) / len(pairs)
