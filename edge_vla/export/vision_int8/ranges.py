"""Which int8 grid a linear's rows and weights get: the one with the smallest error of the product, by search.

A grid over the rows is one number, so one loud channel coarsens all of them. Channels may be evened out first: rows are
divided by a factor per channel and the weight's columns multiplied by it (SmoothQuant, Xiao et al. 2023), which costs
nothing where the factor goes into the operation before. Then the largest values may be clipped. Both are chosen on
sampled rows, by what they do to the output. Knows one linear at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from edge_vla.export.vision_int8.rows import InputRows
from edge_vla.quant import sixteen

LARGEST: Final = 127  # codes are -127 .. 127, as TensorRT wants them
ALPHAS: Final = (0.0, 0.25, 0.4, 0.5, 0.6, 0.75)  # of SmoothQuant; 0: channels stay as they are
CLIPS: Final = tuple(1 - 0.05 * step for step in range(17))  # of the largest value, down to a fifth
QUIET: Final = 0.25  # of the mean of all channels' largest values
LEAST: Final = 1e-5  # of a channel's largest value


@dataclass(frozen=True)
class Grid:
    """Rows become codes times `scale` after division by `even` (K,), None for ones. `error`: of the product's norm."""

    scale: float
    even: Tensor | None
    error: float


def absmax_grid(rows: InputRows, weight: Tensor) -> Grid:
    """The largest value seen is the largest code: what calibration tools do by default."""
    return _measured(rows.sample, weight, float(rows.largest.max()) / LARGEST, None)


def best_grid(rows: InputRows, weight: Tensor, *, may_even: bool = True) -> Grid:
    """Of all exponents and clips the grid with the smallest error on the sampled rows."""
    candidates = list[Grid]()
    for alpha in ALPHAS if may_even else ALPHAS[:1]:
        even = _factors(rows.largest, weight, alpha) if alpha else None
        sample, weighted = (rows.sample, weight) if even is None else (rows.sample / even, weight * even)
        top = float((rows.largest if even is None else rows.largest / even).max())
        importance = weighted.square().sum(0)  # an error in this channel, in the output
        costs = [
            float(((rounded(sample, clip * top / LARGEST) - sample).square() * importance).sum()) for clip in CLIPS
        ]
        scale = CLIPS[costs.index(min(costs))] * top / LARGEST
        candidates.append(_measured(rows.sample, weight, scale, even))
    return min(candidates, key=lambda grid: grid.error)


def weight_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) -> int8 codes (N, K) and a 16-bit scale per row; of five clips the one with the smallest error."""
    largest = weight.abs().amax(1, keepdim=True).clamp_min(LEAST)
    best, scales = torch.full_like(largest, float("inf")), largest
    for clip in (1.0, 0.95, 0.9, 0.85, 0.8):
        tried = sixteen((largest * clip / LARGEST).half()).float()
        error = (_codes(weight, tried) * tried - weight).square().sum(1, keepdim=True)
        scales, best = torch.where(error < best, tried, scales), torch.minimum(error, best)
    return _codes(weight, scales).to(torch.int8), scales[:, 0].half()


def _measured(sample: Tensor, weight: Tensor, scale: float, even: Tensor | None) -> Grid:
    scale = float(torch.tensor(scale).half().clamp_min(torch.finfo(torch.float16).tiny))  # as the graph holds it
    rows, weighted = (sample, weight) if even is None else (sample / even, weight * even)
    codes, scales = weight_codes(weighted)
    exact = sample @ weight.T
    got = rounded(rows, scale) @ (codes.float() * scales.float()[:, None]).T
    return Grid(scale, even, float((got - exact).norm() / exact.norm().clamp_min(LEAST)))


def _factors(largest: Tensor, weight: Tensor, alpha: float) -> Tensor:
    columns = weight.abs().amax(0).clamp_min(LEAST)
    # A channel that was quiet on all images may be loud on the next: never evened out as if it could not.
    factors = largest.clamp_min(QUIET * float(largest.mean()) + LEAST) ** alpha / columns ** (1 - alpha)
    return (factors / factors.log().mean().exp()).clamp(1e-2, 1e2)


def rounded(rows: Tensor, scale: float) -> Tensor:
    return (rows / scale).round().clamp(-LARGEST, LARGEST) * scale


def _codes(weight: Tensor, scales: Tensor) -> Tensor:
    return (weight / scales).round().clamp(-LARGEST, LARGEST)
