"""Which int8 grid a linear's rows and weights get: the one with the smallest error of the product, by search.

A grid over the rows is one number, so one loud channel coarsens all of them. Channels may be evened out first: rows are
divided by a factor per channel and the weight's columns multiplied by it (SmoothQuant, Xiao et al. 2023), which costs
nothing where the factor goes into the operation before. Then the largest values may be clipped. Both are chosen on
sampled rows, by what they do to the output, and the weight is rounded by GPTQ on rows as they were rounded. Knows one
linear at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from edge_vla.export.gptq import factorise, gptq
from edge_vla.export.vision_int8.rows import InputRows
from edge_vla.quant import Scheme

LARGEST: Final = 127  # codes are -127 .. 127, as TensorRT wants them
ALPHAS: Final = (0.0, 0.25, 0.4, 0.5, 0.6, 0.75)  # of SmoothQuant; 0: channels stay as they are
CLIPS: Final = tuple(1 - 0.05 * step for step in range(17))  # of the largest value, down to a fifth
QUIET: Final = 0.25  # of the mean of all channels' largest values
LEAST: Final = 1e-5  # of a channel's largest value


@dataclass(frozen=True)
class Grid:
    """Rows become codes times `scale` after division by `even` (K,), None for ones; 16-bit rows have no scale.

    The weight, its columns multiplied by `even`, is `codes` (N, K) int8 times `scales` (N,) fp16.
    """

    scale: float | None
    even: Tensor | None
    codes: Tensor
    scales: Tensor

    @property
    def weight(self) -> Tensor:
        """(N, K) float32, as the product reads it."""
        return self.codes.float() * self.scales.float()[:, None]


def absmax_grid(rows: InputRows, weight: Tensor) -> Grid:
    """The largest value seen is the largest code, weights are rounded to nearest: what calibration tools do."""
    scale = _as_stored(float(rows.largest.max()) / LARGEST)
    return Grid(scale, None, *weight_codes(weight))


def best_grid(name: str, rows: InputRows, weight: Tensor) -> Grid:
    """Of all exponents and clips the grid with the smallest error on the sampled rows, then the weight by GPTQ."""
    exact, found = rows.sample @ weight.T, list[tuple[float, float, Tensor | None]]()
    for alpha in ALPHAS:
        even = _factors(rows.largest, weight, alpha) if alpha else None
        sample, weighted = (rows.sample, weight) if even is None else (rows.sample / even, weight * even)
        scale = _best_scale(sample, weighted, float((rows.largest if even is None else rows.largest / even).max()))
        codes, scales = weight_codes(weighted)
        got = rounded(sample, scale) @ (codes.float() * scales.float()[:, None]).T
        found.append((float((got - exact).square().sum()), scale, even))
    _, scale, even = min(found, key=lambda one: one[0])
    sample, weighted = (rows.sample, weight) if even is None else (rows.sample / even, weight * even)
    return Grid(scale, even, *_compensated(name, rounded(sample, scale), weighted))


def weights_grid(name: str, rows: InputRows, weight: Tensor) -> Grid:
    """int8 weights behind 16-bit rows."""
    return Grid(None, None, *_compensated(name, rows.sample, weight))


def weight_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) -> nearest int8 codes (N, K) and a 16-bit scale per row; of five clips the one with the smallest error."""
    largest = weight.abs().amax(1, keepdim=True).clamp_min(LEAST)
    best, scales = torch.full_like(largest, float("inf")), largest
    for clip in (1.0, 0.95, 0.9, 0.85, 0.8):
        tried = (largest * clip / LARGEST).half().float()
        error = (_codes(weight, tried) * tried - weight).square().sum(1, keepdim=True)
        scales, best = torch.where(error < best, tried, scales), torch.minimum(error, best)
    return _codes(weight, scales).to(torch.int8), scales[:, 0].half()


def _best_scale(sample: Tensor, weight: Tensor, top: float) -> float:
    importance = weight.square().sum(0)  # an error in this channel, in the output
    scales = [clip * top / LARGEST for clip in CLIPS]
    costs = [float(((rounded(sample, one) - sample).square() * importance).sum()) for one in scales]
    return _as_stored(scales[costs.index(min(costs))])


def _compensated(name: str, rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales by GPTQ on these rows; to nearest where no row was ever active."""
    if not rows.any():
        return weight_codes(weight)
    packed = gptq(weight, factorise(rows.T @ rows, name), Scheme.INT8, None)
    assert packed.scales is not None, "int8 has scales"
    return packed.codes, packed.scales.flatten().half()


def _as_stored(scale: float) -> float:
    """As fp16 holds it, and no subnormal."""
    return float(torch.tensor(scale).clamp_min(torch.finfo(torch.float16).tiny).half())


def _factors(largest: Tensor, weight: Tensor, alpha: float) -> Tensor:
    columns = weight.abs().amax(0).clamp_min(LEAST)
    # A channel that was quiet on all images may be loud on the next: never evened out as if it could not.
    factors = largest.clamp_min(QUIET * float(largest.mean()) + LEAST) ** alpha / columns ** (1 - alpha)
    return (factors / factors.log().mean().exp()).clamp(1e-2, 1e2)


def rounded(rows: Tensor, scale: float) -> Tensor:
    return (rows / scale).round().clamp(-LARGEST, LARGEST) * scale


def _codes(weight: Tensor, scales: Tensor) -> Tensor:
    return (weight / scales).round().clamp(-LARGEST, LARGEST)
