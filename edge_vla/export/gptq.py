"""GPTQ: round a weight's columns one by one, and let the columns still to come make up for each error.

The order is that of the inputs' energy, the groups and their scales are fixed before the first column (so the packed
layout is that of rounding to nearest), and the factor of the Hessian is shared by all weights that read one input.
Knows matrices only; `edge_vla.calibration` makes the Hessians. Frantar et al., arXiv:2210.17323.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from edge_vla.errors import NumericError
from edge_vla.quant import (
    GRIDS,
    PackedWeight,
    Scheme,
    Steps,
    expand_scales,
    extent,
    nearest,
    pack,
    packed,
    spanning,
)

LOG: Final = logging.getLogger("edge_vla.export.gptq")
DAMPING: Final = 0.01  # of the mean energy, added to every input's
MOST_DAMPING: Final = 10.0
COLUMNS: Final = 128  # rounded together before the rest of the matrix is told
ROWS: Final = 128  # searched together: few enough to stay in the processor's cache
SHRINK: Final = tuple(round(1 - 0.025 * step, 3) for step in range(25))  # clipping tried, as parts of the whole range


@dataclass(frozen=True)
class Factor:
    """What GPTQ needs of a Hessian: `upper` is U with U'U its damped inverse, inputs taken in `order`."""

    energy: Tensor  # (K,) float32: the diagonal, dead inputs at the mean
    order: Tensor  # (K,) int64
    upper: Tensor  # (K, K) float32
    damping: float


def factorise(hessian: Tensor, what: str, damping: float = DAMPING) -> Factor:
    """Order, damp and factor a (K, K) Hessian in float64.

    An input that is never active gets the mean energy and so is rounded to nearest; a matrix that is still singular
    gets ten times the damping, until it is none. Both are logged. NumericError for what is not finite.
    """
    if not torch.isfinite(hessian).all():
        raise NumericError(f"{what}: the calibration's activations are not finite: verify the checkpoint and frames")
    energy = hessian.diagonal().double().clone()
    dead = energy <= 0
    if dead.all():
        raise NumericError(f"{what}: no input is ever active: the checkpoint is not a trained policy's")
    mean = float(energy[~dead].mean())
    if dead.any():
        LOG.warning("%s: %d of %d inputs are never active, rounded to nearest", what, int(dead.sum()), len(dead))
        energy[dead] = mean
    order = torch.sort(energy, descending=True, stable=True).indices
    wide = hessian.double()[order][:, order]
    while True:
        damped = wide.clone()
        damped.diagonal().copy_(energy[order] + damping * mean)
        # H = R R' with R upper, by flipping both axes; U = 1/R then has U'U = 1/H.
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not failed:
            break
        if damping >= MOST_DAMPING:
            raise NumericError(f"{what}: the Hessian stays singular with damping {damping:g}: give more frames")
        LOG.warning("%s: singular with damping %g, tried again with %g", what, damping, damping * 10)
        damping *= 10
    root = lower.flip(0, 1)
    upper = torch.linalg.solve_triangular(root, torch.eye(len(root), dtype=root.dtype), upper=True)
    return Factor(energy.float(), order, upper.float(), damping)


def gptq(weight: Tensor, factor: Factor, scheme: Scheme, group: int | None) -> PackedWeight:
    """Round a (N, K) weight so that its outputs, not its entries, stay near."""
    if scheme is Scheme.BF16:
        raise AssertionError("16 bits are not rounded")
    outer, inner = weight.shape
    left = weight.float()
    found = search_steps(left, factor.energy, scheme, group)
    steps = expand_scales(found.scales, (outer, inner))[:, factor.order]
    offsets = expand_scales(found.offsets(), (outer, inner))[:, factor.order]
    left, codes = left[:, factor.order], torch.empty(outer, inner, dtype=torch.uint8)
    for start in range(0, inner, COLUMNS):
        stop = min(start + COLUMNS, inner)
        block, upper = left[:, start:stop].clone(), factor.upper[start:stop, start:stop]
        errors = torch.empty_like(block)
        for column in range(stop - start):
            now, step, offset = block[:, column], steps[:, start + column], offsets[:, start + column]
            chosen = nearest((now - offset) / step, scheme)
            codes[:, start + column] = chosen
            there = GRIDS[scheme].levels(chosen) * step + offset
            errors[:, column] = (now - there) / upper[column, column]
            if column + 1 < stop - start:
                block[:, column + 1 :].addr_(errors[:, column], upper[column, column + 1 :], alpha=-1)
        left[:, stop:].addmm_(errors, factor.upper[start:stop, stop:], alpha=-1)
    unordered = torch.empty_like(codes)
    unordered[:, factor.order] = codes
    return packed(unordered, found, scheme, group)


def clipped(weight: Tensor, energy: Tensor, scheme: Scheme, group: int | None) -> PackedWeight:
    """A (N, K) weight at the nearest codes of the searched steps: GPTQ without making up for errors."""
    real = weight.float()
    steps = search_steps(real, energy, scheme, group)
    return pack(real.view(len(real), -1, group or real.shape[1]), steps, scheme, group)


def search_steps(weight: Tensor, energy: Tensor, scheme: Scheme, group: int | None) -> Steps:
    """(N, K) float32 -> (N, K/group) steps that lose least of each group's output, each input weighed by its energy.

    Tries how much of the range to keep; the whole range is the first candidate and wins ties.
    """
    outer, inner = weight.shape
    if outer > ROWS:
        parts = [search_steps(rows, energy, scheme, group) for rows in torch.split(weight, ROWS)]
        moved = [part.zeros for part in parts if part.zeros is not None]
        return Steps(torch.cat([part.scales for part in parts]), torch.cat(moved) if moved else None)
    grouped = weight.view(outer, -1, group or inner)
    importance = energy.view(1, -1, group or inner)
    low, high = extent(grouped, scheme)
    best, least = spanning(low, high, scheme), torch.full_like(low, torch.inf)
    for part in SHRINK:
        steps = spanning(low, high, scheme, part)
        scales, offsets = steps.scales[..., None], steps.offsets()[..., None]
        there = GRIDS[scheme].levels(nearest((grouped - offsets) / scales, scheme)) * scales + offsets
        loss = ((there - grouped).square_() * importance).sum(dim=2)
        better = loss < least
        zeros = None if steps.zeros is None or best.zeros is None else torch.where(better, steps.zeros, best.zeros)
        best = Steps(torch.where(better, steps.scales, best.scales), zeros)
        least = torch.where(better, loss, least)
    return best
