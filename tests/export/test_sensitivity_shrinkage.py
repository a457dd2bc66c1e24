"""Shrinkage removes noise and keeps structure: shrunk KL costs beside the true ones."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_vla.export.shrinkage import shrink, two_effects

Table = NDArray[np.float64]
LINEARS, FORMATS = 40, 9


def known(rng: np.random.Generator, residual: float = 0.0) -> Table:
    """KL costs that follow one curve, except for residuals of this standard deviation in logarithms."""
    curve = rng.normal(0, 0.5, (LINEARS, 1)) + np.linspace(0, -6, FORMATS)
    return np.exp(curve + rng.normal(0, residual, (LINEARS, FORMATS)))


def noisy(truth: Table, rng: np.random.Generator, noise: float = 0.3) -> Table:
    return truth * np.exp(rng.normal(0, noise, truth.shape))


def off(estimate: Table, truth: Table) -> float:
    return float(np.std(np.log(estimate / truth)))


@pytest.mark.parametrize("seed", range(5))
def test_noise_goes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = known(rng)
    first, second = noisy(truth, rng), noisy(truth, rng)
    estimate, kept = shrink(first, second)
    assert kept < 0.3
    assert off(estimate, truth) < 0.65 * off((first + second) / 2, truth), "49 effects for 360 numbers"


@pytest.mark.parametrize("seed", range(5))
def test_what_repeats_stays(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = known(rng, residual=1.0)
    first, second = noisy(truth, rng), noisy(truth, rng)
    estimate, kept = shrink(first, second)
    assert kept > 0.8
    assert off(estimate, truth) < 1.05 * off((first + second) / 2, truth)


def test_without_noise_nothing_changes() -> None:
    truth = known(np.random.default_rng(0), residual=0.5)
    estimate, kept = shrink(truth, truth)
    assert kept == pytest.approx(1)
    assert estimate == pytest.approx(truth)


def test_gaps_and_zeros_stay() -> None:
    rng = np.random.default_rng(0)
    truth = known(rng)
    truth[3, 2] = np.nan
    truth[5] = 0.0
    estimate, _ = shrink(truth, truth)
    assert np.isnan(estimate[3, 2])
    assert not estimate[5].any()
    assert np.isfinite(np.delete(estimate.ravel(), 3 * FORMATS + 2)).all()
    nothing, kept = shrink(np.zeros((2, 3)), np.zeros((2, 3)))
    assert kept == 0
    assert not nothing.any()


def test_two_effects_are_found_through_gaps() -> None:
    """A sum of a row's and a column's number is recovered exactly, also where nothing was measured."""
    rng = np.random.default_rng(1)
    table = rng.normal(size=(6, 1)) + rng.normal(size=(1, 4))
    usable = rng.random(table.shape) < 0.8
    usable[0], usable[:, 0] = True, True
    assert two_effects(np.where(usable, table, 99.0), usable) == pytest.approx(table)
