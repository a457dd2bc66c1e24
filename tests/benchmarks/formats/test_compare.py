"""The format study on a handful of frames: a row for every case, compared with the one that it names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.demo_policy import episodes
from benchmarks.formats import compare, tables
from benchmarks.formats.divergence import kl_reduction
from benchmarks.formats.recipes import QUESTIONS, freed_bits
from benchmarks.formats.results import FLOOR, FormatsResult
from edge_vla.checkpoint import open_checkpoint
from edge_vla.demo import BASE
from edge_vla.export import Recipe, export
from edge_vla.spec import OPENVLA_7B


@pytest.mark.parametrize("question", QUESTIONS)
def test_each_case_is_compared_with_an_earlier_one(question: str) -> None:
    cases = QUESTIONS[question].cases(open_checkpoint(BASE).config.spec)
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
    one = kl_reduction(before, before**2 / 10, ["a"] * 6)
    assert one.low < one.mean < one.high, "frames of a single episode are resampled"


def test_a_format_beside_the_noise_floor(tmp_path: Path) -> None:
    frames = episodes.frames("world1-policy", "evaluation", tmp_path / "frames", episodes=2)[:10]
    artifact = export(BASE, tmp_path / "int4", Recipe()).directory
    comparer = compare.Comparer(BASE, frames, tmp_path)
    comparer.add("int4", artifact, FLOOR)
    floor, int4 = comparer.rows
    assert (floor.name, floor.recipe, floor.bits_per_weight, floor.against) == (FLOOR, None, None, None)
    assert (int4.bits_per_weight, int4.calibration_leakage, int4.spent) == (4.125, None, None)
    assert int4.against is not None
    assert int4.against.name == FLOOR
    assert int4.kl.mean > floor.kl.mean > 0
    assert int4.high_margin_tokens == floor.high_margin_tokens > 0
    result = FormatsResult("bits", "the demo policy", 10, 2, comparer.margin_floor, comparer.rows)
    assert len(list(tables.formats(result))) == 2 + 2 + 2, "a sentence, a gap, the head, two rows"
    again = compare.Comparer(BASE, frames, tmp_path)
    assert again.rows[0] == floor, "logits that are there are not computed again"
