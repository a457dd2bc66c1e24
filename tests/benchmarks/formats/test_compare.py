"""The format study on a handful of frames: a row for every case, compared with the one that it names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.formats import compare, tables
from benchmarks.formats.divergence import kl_reduction
from benchmarks.formats.recipes import QUESTIONS, freed_bits
from benchmarks.formats.results import FLOOR
from edge_vla.checkpoint import open_checkpoint
from edge_vla.demo import BASE
from edge_vla.spec import OPENVLA_7B


@pytest.mark.parametrize("question", QUESTIONS)
def test_each_case_is_compared_with_an_earlier_one(question: str) -> None:
    cases = QUESTIONS[question](open_checkpoint(BASE).config.spec)
    for index, case in enumerate(cases.values()):
        assert case.against in [FLOOR, *list(cases)[:index]]


def test_the_bits_that_int8_towers_free() -> None:
    """OpenVLA's towers and projector have about an eighth of its decoder's weights."""
    assert 0.9 < freed_bits(OPENVLA_7B) < 1.1


def test_a_reduction_has_its_interval() -> None:
    before = np.array([1.0, 1.0, 2.0, 2.0, 3.0, 3.0])
    found = kl_reduction(before, before / 4, ["a", "a", "b", "b", "c", "c"])
    assert (found.mean, found.low, found.high) == (0.75, 0.75, 0.75)
    rng = np.random.default_rng(0)
    noisy = kl_reduction(before, before / 4 * rng.uniform(0.5, 1.5, 6), ["a", "a", "b", "b", "c", "c"])
    assert noisy.low < noisy.mean < noisy.high


@pytest.mark.slow
def test_a_few_frames_of_every_bit_budget(tmp_path: Path) -> None:
    result = compare.compare("bits", tmp_path, 12)
    names = [row.name for row in result.rows]
    assert names == [FLOOR, *QUESTIONS["bits"](open_checkpoint(BASE).config.spec)]
    floor, int4 = result.rows[:2]
    assert (floor.recipe, floor.bits_per_weight, floor.against) == (None, None, None)
    assert (int4.bits_per_weight, int4.calibration_leakage) == (4.125, 0)
    mixed = next(row for row in result.rows if row.name == "mixed 3.25")
    assert mixed.spent is not None
    assert mixed.spent.bits_per_weight == pytest.approx(3.25, abs=0.01)
    assert mixed.against is not None
    assert mixed.against.name == "int3"
    assert len(list(tables.formats(result))) == len(names) + 4
