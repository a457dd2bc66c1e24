"""Which linears of the vision side compute in int8, by measurement: every one alone, and what it does to the output.

An error in a late linear reaches the decoder as it is, one in an early block is diluted. So a linear's own error says
little: each is rounded alone while the rest computes in float32. Those that do far more harm than their share keep 16
bits, within a budget of weights; outliers that do not fit keep int8 weights and read 16-bit rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from edge_vla.errors import UsageError
from edge_vla.export.vision_int8.ranges import Grid, best_grid, rounded, weights_grid
from edge_vla.export.vision_int8.rows import Hook, hooked, input_rows, linears
from edge_vla.runtime.vision.towers import TorchVision

OUTLIER: Final = 0.5  # times the mean squared error of the output per weight
BUDGET: Final = 0.08  # of the linears' weights may stay in 16 bits: a 7B engine stays below 0.85 GB
MEASURED: Final = 4  # images that every linear is rounded alone on


class OnStep(Protocol):
    def __call__(self, words: str, /) -> None: ...


@dataclass(frozen=True)
class Choice:
    """How the vision side becomes int8. `alone` is what each linear does to the output by itself, of its norm."""

    grids: Mapping[str, Grid]  # int8 weights, and int8 rows where they have a scale
    kept: tuple[str, ...]  # 16 bits
    alone: Mapping[str, float]
    error: float  # of the output with all of it, on the calibration images

    @property
    def summary(self) -> str:
        count, rows = len(self.grids) + len(self.kept), len(self.weights_only)
        return (
            f"{count - rows - len(self.kept)} of {count} linears in int8, {rows} with 16-bit rows, "
            f"{len(self.kept)} in 16 bits; error {self.error:.2%}"
        )

    @property
    def weights_only(self) -> list[str]:
        """Linears with int8 weights and 16-bit rows."""
        return [name for name, grid in self.grids.items() if grid.scale is None]


def choose(network: TorchVision, images: Sequence[Tensor], on_step: OnStep | None = None) -> Choice:
    """Calibrate on `images` (1, 3 x towers, H, W) with a float32 network. UsageError without any."""
    if not images:
        raise UsageError("int8 vision needs images to calibrate on: --frames DIR")
    say = on_step or _silent
    modules = linears(network)
    rows = input_rows(network, images, len(images))
    say(f"rows of {len(modules)} linears on {len(images)} images")
    grids = {name: best_grid(name, rows[name], module.weight.data) for name, module in modules.items()}
    say("a grid for every linear")
    some = images[:: max(1, len(images) // MEASURED)][:MEASURED]
    exact = _outputs(network, some)
    alone = dict[str, float]()
    for name, grid in grids.items():
        with as_int8(modules, {name: grid}):
            alone[name] = _apart(_outputs(network, some), exact)
    say(f"every linear rounded alone; most harm: {max(alone, key=alone.__getitem__)}")
    sizes = {name: module.weight.numel() for name, module in modules.items()}
    kept, weights_only = outliers(alone, sizes)
    grids |= {name: weights_grid(name, rows[name], modules[name].weight.data) for name in weights_only}
    chosen = {name: grid for name, grid in grids.items() if name not in kept}
    with as_int8(modules, chosen):
        error = _apart(_outputs(network, some), exact)
    return Choice(chosen, tuple(kept), alone, error)


def outliers(alone: Mapping[str, float], sizes: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Linears that keep 16 bits, and those that keep 16-bit rows only; worst first, squared error per weight."""
    total = sum(sizes.values())
    mean, left = sum(error**2 for error in alone.values()) / total, BUDGET * total
    kept, rows_only = list[str](), list[str]()
    for name in sorted(alone, key=lambda one: -(alone[one] ** 2) / sizes[one]):
        if alone[name] ** 2 / sizes[name] <= OUTLIER * mean:
            break
        fits = sizes[name] <= left
        (kept if fits else rows_only).append(name)
        left -= sizes[name] if fits else 0
    return kept, rows_only


@contextmanager
def as_int8(modules: Mapping[str, nn.Linear], grids: Mapping[str, Grid]) -> Iterator[None]:
    """The network as the int8 graph computes it, in float32: weights and rows rounded to their grids."""
    before = {name: modules[name].weight for name in grids}
    for name, grid in grids.items():
        modules[name].weight = nn.Parameter(grid.weight.to(before[name].device), requires_grad=False)
    try:
        with hooked({modules[name]: _rounder(grid, grid.scale) for name, grid in grids.items() if grid.scale}):
            yield
    finally:
        for name, weight in before.items():
            modules[name].weight = weight


def _rounder(grid: Grid, scale: float) -> Hook:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:  # noqa: ARG001
        rows = inputs[0] if grid.even is None else inputs[0] / grid.even.to(inputs[0].device)
        return (rounded(rows, scale),)

    return hook


def _silent(words: str, /) -> None:
    """For callers that show no progress."""


def _outputs(network: TorchVision, images: Sequence[Tensor]) -> Tensor:
    with torch.inference_mode():
        return torch.cat([network(image) for image in images])


def _apart(got: Tensor, exact: Tensor) -> float:
    return float((got - exact).norm() / exact.norm())
