"""The study of targets: shares are of the right limit, and the loops over registers do what they say."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cpu import targets
from benchmarks.cpu.decoders import random_weight
from benchmarks.cpu.results import TargetShare
from edge_vla.runtime.cpu.native.structs import Int8Inputs
from edge_vla.runtime.cpu.native.targets import named, runnable

BEST = runnable()[0]


def test_a_share_is_of_the_instructions_that_the_product_has() -> None:
    rates, generator = {"float": 1.0, "byte": 8.0, "bf16": 0.0}, torch.Generator().manual_seed(0)
    four, sixteen = (random_weight((64, 128), bits, generator) for bits in (4, 16))
    assert targets.product_peak(four, Int8Inputs.NEVER, rates) == 4.0, "rows of 16 bits are two of 8"
    assert targets.product_peak(four, Int8Inputs.ALWAYS, rates) == 8.0
    assert targets.product_peak(sixteen, Int8Inputs.NEVER, rates) == 1.0
    paired = {**rates, "bf16": 3.0}
    assert targets.product_peak(sixteen, Int8Inputs.NEVER, paired) == 3.0
    assert targets.product_peak(four, Int8Inputs.NEVER, paired) == 4.0, "rows are integers on every target"


def test_targets_are_bound_as_the_issue_says() -> None:
    one, many = (TargetShare("native@avx2", "int4", rows, "reading", 10, 0.5) for rows in (1, 288))
    assert [bound.bound for bound in targets.bounds([one, many], [])] == [0.70, 0.75]


@pytest.mark.skipif(BEST.name == "scalar", reason="no instructions here")
def test_peaks_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "LOOPS", 1000)
    rates = targets.peaks(named(BEST.name))
    assert rates["byte"] > 0
    assert rates["float"] > 0
