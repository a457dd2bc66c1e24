"""The systems under test of our own: the engine in several configurations, with and without drafts.

Every system maps one preprocessed picture on the host to token ids on the host, for one prompt. Knows engines; knows
nothing of clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.configurations import CHANCE, Configuration
from edge_vla.checkpoint import Checkpoint
from edge_vla.runtime.gpu.engine import GpuEngine
from edge_vla.runtime.types import Draft

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """What every system is given: pixel values (n, 3 x towers, H, W) on the host, one prompt, a number of tokens."""

    pixels: Tensor
    prompt: Tokens
    dims: int
    device: torch.device

    @staticmethod
    def make(checkpoint: Checkpoint, pictures: int, prompt: int, dims: int, device: torch.device) -> Task:
        """Smooth noise, and a prompt of `prompt` tokens without action ids."""
        spec = checkpoint.config.spec
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn(pictures, 3 * len(spec.towers), 8, 8, generator=generator)
        pixels = torch.nn.functional.interpolate(coarse, spec.image_size, mode="bilinear")
        ids = torch.randint(spec.decoder.eos + 1, spec.action.first, (prompt - 1,), generator=generator)
        return Task(pixels, (spec.decoder.bos, *ids.tolist()), dims, device)


@dataclass
class System:
    """`act(i)` gives the tokens of picture i. `passes` collects the decoder's passes where drafts make them vary.

    `reset` drops recorded graphs: the next actions record them again.
    """

    name: str
    act: Callable[[int], Tokens]
    about: str
    passes: list[int] = field(default_factory=list)
    reset: Callable[[], None] = lambda: None
    ours: bool = False


def plain(configuration: Configuration, engine: GpuEngine, task: Task) -> System:
    def act(index: int) -> Tokens:
        return engine.decide(task.prompt, task.pixels[index % len(task.pixels)], task.dims).tokens

    return System(configuration.name, act, configuration.about, reset=engine.graphs.clear, ours=True)


def drafted(name: str, engine: GpuEngine, task: Task, *, in_prefill: bool) -> System:
    """Each dimension of each draft is right with CHANCE, also after a miss: planted, because the weights are random.

    What is right is computed before, without drafts and untimed, once per picture.
    """
    assert engine.decoder.prefill_matches_step or not in_prefill, f"{name}: its prefill rounds what a step does not"
    generator, action = np.random.default_rng(0), engine.spec.action
    passes = list[int]()

    def plant(right: Sequence[int]) -> Draft:
        def draft(accepted: Sequence[int], guesses: Sequence[int]) -> list[int]:  # noqa: ARG001
            missed = generator.random(len(right)) >= CHANCE
            return [(one + int(off) * int(generator.integers(1, action.bins))) % action.bins
                    for one, off in zip(right, missed, strict=True)]  # fmt: skip

        return draft

    def act(index: int) -> Tokens:
        picture = index % len(task.pixels)
        draft, pixels = plant(known[picture]), task.pixels[picture]
        decision = engine.decide(task.prompt, pixels, task.dims, draft, bitwise_exact=not in_prefill)
        passes.append(decision.passes)
        return decision.tokens

    plain = [engine.decide(task.prompt, pixels, task.dims).tokens for pixels in task.pixels]
    known = [[token - action.first for token in tokens] for tokens in plain]
    where = "in the prefill, near-ties may flip" if in_prefill else "after the prefill, bitwise exact"
    about = f"planted drafts, each dimension right with p = {CHANCE:g}, verified {where}"
    return System(name, act, about, passes, engine.graphs.clear, ours=True)
