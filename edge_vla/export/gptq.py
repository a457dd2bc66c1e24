"""GPTQ: round a weight's columns one by one, and let the remaining columns compensate for each error.

Columns go by descending energy of their input; groups and their scales are fixed before the first column, so the
packed layout is that of rounding to nearest; weights that read one input share the factor of its Hessian.
The method (Frantar et al., arXiv:2210.17323) is usually stated with the Cholesky factor of the Hessian's inverse. The
same codes follow from a factor of the Hessian itself (Chee et al., arXiv:2307.13304, theorem 6), which is a third of
the arithmetic and better conditioned. Knows matrices only; `edge_vla.calibration` sums the Hessians.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
    extent,
    nearest,
    pack,
    packed,
    spanning,
)

LOG: Final = logging.getLogger("edge_vla.export.gptq")
DAMPING: Final = 0.01  # of the mean energy, added to every input's
MAX_DAMPING: Final = 10.0
COLUMNS: Final = 128  # rounded before their errors are passed on to the rest of the matrix
OUTPUTS: Final = 1024  # rounded by one worker
ROWS: Final = 128  # searched together: few enough to stay in the processor's cache
SHRINK: Final = tuple(round(1 - 0.025 * step, 3) for step in range(25))  # candidates for clipping, of the whole range


@dataclass(frozen=True)
class Factor:
    """The damped Hessian as U D U', inputs in `order`: a later input k compensates `upper[j, k]` of an error in j."""

    energy: Tensor  # (K,) float32: the diagonal, dead inputs at the mean
    order: Tensor  # (K,) int64
    upper: Tensor  # (K, K) float32: U, ones on its diagonal
    damping: float


def factorise(hessian: Tensor, what: str, damping: float = DAMPING) -> Factor:
    """Order, damp and factor a (K, K) Hessian in float64, which takes two such matrices beside the given one.

    An input that is never active gets the mean energy and so is rounded to nearest; a matrix that is still singular
    gets ten times the damping until it is not. Both are logged, with `what` as the name. NumericError for a Hessian
    that is not finite, all zero, or singular at the highest damping.
    """
    if not torch.isfinite(hessian).all():
        raise NumericError(f"{what}: calibration activations are not finite: verify the checkpoint and the frames")
    energy = hessian.diagonal().double().clone()
    dead = energy <= 0
    if dead.all():
        raise NumericError(f"{what}: no input is ever active: expected the checkpoint of a trained policy")
    mean = float(energy[~dead].mean())
    if dead.any():
        LOG.warning("%s: %d of %d inputs are never active, rounded to nearest", what, int(dead.sum()), len(dead))
        energy[dead] = mean
    order = torch.sort(energy, descending=True, stable=True).indices
    backwards = order.flip(0)  # then a lower factor, flipped again, is an upper one
    damped = hessian[backwards][:, backwards].double()
    while True:
        damped.diagonal().copy_(energy[backwards] + damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            break
        if damping >= MAX_DAMPING:
            raise NumericError(f"{what}: the Hessian stays singular with damping {damping:g}: give more frames")
        LOG.warning("%s: singular with damping %g, tried again with %g", what, damping, damping * 10)
        damping *= 10
    del damped
    upper = lower.div_(lower.diagonal().clone()).float().flip(0, 1)
    return Factor(energy.float(), order, upper, damping)


def gptq(weight: Tensor, factor: Factor, scheme: Scheme, group: int | None) -> PackedWeight:
    """Round a (N, K) weight so that its outputs, rather than its entries, stay near.

    Calculates on the factor's device and returns on the host.
    """
    if scheme is Scheme.BF16:
        raise AssertionError("16 bits are not rounded")

    def round_part(part: Tensor) -> tuple[Tensor, Steps]:
        steps = search_steps(part.float(), factor.energy, scheme, group)
        return round_outputs(part, factor, steps, scheme), steps

    if factor.order.is_cuda:
        whole, found = round_part(weight.to(factor.order.device))  # a GPU rounds all outputs at once
        return packed(whole.cpu(), found.cpu(), scheme, group)
    with one_thread_each() as workers:
        codes, steps = zip(*workers.map(round_part, torch.split(weight, OUTPUTS)), strict=True)
    return packed(torch.cat(codes), joined(steps), scheme, group)


def round_outputs(weight: Tensor, factor: Factor, found: Steps, scheme: Scheme) -> Tensor:
    """(N, K) weight -> (N, K) uint8 codes. Outputs are independent: any subset of them gets the same codes."""
    n, k = weight.shape
    group, levels = k // found.scales.shape[1], GRIDS[scheme].levels
    steps, offsets = found.scales.T.contiguous(), found.offsets().T.contiguous()  # (K/group, N)
    codes = torch.empty(k, n, dtype=torch.uint8, device=weight.device)
    passed_on = torch.zeros(k, n, device=weight.device)  # to each input in its order, by the errors of earlier blocks
    for start in range(0, k, COLUMNS):
        inputs, upper = factor.order[start : start + COLUMNS], factor.upper[start : start + COLUMNS]
        among = upper[:, start : start + COLUMNS].T.contiguous()
        exact = weight[:, inputs].T.float()
        wanted, errors = exact + passed_on[start : start + COLUMNS], torch.empty_like(exact)
        for place, chosen in enumerate(inputs.tolist()):
            step, offset = steps[chosen // group], offsets[chosen // group]
            now = torch.addmv(wanted[place], errors[:place].T, among[place, :place])
            codes[chosen] = code = nearest(now.sub_(offset).div_(step), scheme)
            torch.sub(exact[place], levels(code).mul_(step).add_(offset), out=errors[place])
        passed_on[start + COLUMNS :].addmm_(upper[:, start + COLUMNS :].T, errors)
    return codes.T.contiguous()


@contextmanager
def one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """As many workers as torch has threads, each with one thread: small steps are slower with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as workers:
            yield workers
    finally:
        torch.set_num_threads(threads)


def clipped(weight: Tensor, energy: Tensor, scheme: Scheme, group: int | None) -> PackedWeight:
    """A (N, K) weight at the nearest codes of the searched steps: GPTQ without its compensation."""
    real = weight.float()
    steps = search_steps(real, energy, scheme, group)
    return pack(real.view(len(real), -1, group or real.shape[1]), steps, scheme, group)


def search_steps(weight: Tensor, energy: Tensor, scheme: Scheme, group: int | None) -> Steps:
    """(N, K) float32 -> (N, K/group) steps with the least error of each group's output, inputs weighted by energy (K,).

    Searches how much of the range to keep; the whole range is the first candidate and wins ties.
    """
    n, k = weight.shape
    if n > ROWS:
        return joined([search_steps(rows, energy, scheme, group) for rows in torch.split(weight, ROWS)])
    grouped = weight.view(n, -1, group or k)
    importance = energy.view(1, -1, group or k)
    low, high = extent(grouped, scheme)
    best, least = spanning(low, high, scheme), torch.full_like(low, torch.inf)
    for part in SHRINK:
        steps = spanning(low, high, scheme, part)
        scales, offsets = steps.scales[..., None], steps.offsets()[..., None]
        rounded = GRIDS[scheme].levels(nearest((grouped - offsets) / scales, scheme)) * scales + offsets
        loss = ((rounded - grouped).square_() * importance).sum(dim=2)
        better = loss < least
        zeros = None if steps.zeros is None or best.zeros is None else torch.where(better, steps.zeros, best.zeros)
        best = Steps(torch.where(better, steps.scales, best.scales), zeros)
        least = torch.where(better, loss, least)
    return best


def joined(parts: Sequence[Steps]) -> Steps:
    """The steps of consecutive outputs as one."""
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return Steps(torch.cat([part.scales for part in parts]), torch.cat(zeros) if zeros else None)
