"""The stages of training the demo policy: what each is trained on, and how its learning rates move.

Batch n depends on the stage and n alone. Knows frames; knows no network.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.demo_policy import samples
from edge_vla.demo.render import world
from edge_vla.demo.world import BLOCKS


@dataclass(frozen=True, slots=True)
class Stage:
    """One row of the table. Rates rise over `warmup` steps and fall over the last share `decay` of them."""

    name: str
    steps: int
    first_seed: int
    batch: int = 64
    prompts: int = 4
    look: int = 1  # number of the world
    language: bool = True
    puts: bool = True
    wordings: int = 64
    blocks: tuple[int, int] = BLOCKS
    misled: float = 0.5  # share of prompts that are followed by misleading action tokens
    frames: int = 0  # 0: always fresh frames; else so many, repeated
    matrix_rate: float = 0.006
    rate: float = 1e-3
    warmup: int = 60
    decay: float = 0.0
    softness: tuple[float, float] = (2.0, 2.0)  # width of the labels in bins, at the start and at the end
    vision: float = 0.3  # weights of the losses
    pointer: float = 0.3
    average: float = 0.995

    def draw(self, first: int, count: int) -> samples.Batch:
        """The frames of `count` seeds."""
        return samples.batch(
            world(self.look), first, count, self.prompts, self.puts, self.wordings, self.blocks, self.misled
        )

    def rate_factor(self, step: int) -> float:
        """The factor on both learning rates at a step."""
        up = min(1.0, (step + 1) / self.warmup)
        falling = self.steps * self.decay
        return up * (min(1.0, (self.steps - step) / falling) if falling else 1.0)

    def softness_at(self, step: int) -> float:
        """Width of the labels in bins at a step."""
        start, end = self.softness
        return start + (end - start) * step / self.steps


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
    """Batches from number `first` on, drawn by so many processes beside this one."""
    loader: DataLoader[dict[str, NDArray[np.generic]]] = DataLoader(
        Frames(stage),
        batch_size=None,
        sampler=range(first, stage.steps),
        num_workers=workers,
        prefetch_factor=8 if workers else None,
    )
    for arrays in loader:
        yield {name: torch.as_tensor(array) for name, array in arrays.items()}
