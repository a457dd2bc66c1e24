"""The study of targets: shares are of the right limit, and the loops over registers do what they say."""

from __future__ import annotations

import pytest

from benchmarks.cpu import targets
from edge_vla.runtime.cpu.native.targets import named, runnable
from edge_vla.spec import OPENVLA_7B

BEST = runnable()[0]


def test_a_share_is_of_the_instructions_that_the_kernel_has() -> None:
    rates = {"float": 1.0, "byte": 8.0, "bf16": 0.0}
    assert targets.product_peak("native", rates) == 4.0, "rows of 16 bits are two of 8"
    assert targets.product_peak("native/int8", rates) == 8.0
    assert targets.product_peak("native", {**rates, "bf16": 3.0}) == 3.0


def test_a_prefill_at_the_peak_is_a_share_of_one() -> None:
    spec, rows = OPENVLA_7B, 288
    share = targets._share("native@avx2", spec, [1e3], [2e3], 1.0, 1e9, rows)
    weights = spec.decoder.layers * sum(n * k for n, k in spec.decoder.linears().values())
    assert share.prefill_share == pytest.approx(rows * weights, rel=0.05), "but for the last layer"
    assert share.step_share == pytest.approx(weights / 2 / 1e9 / 2, rel=0.05)


def test_targets_are_bound_as_the_issue_says() -> None:
    share = targets._share("native@avx2", OPENVLA_7B, [1e3], [2e3], 1.0, 1e9, 288)
    assert {bound.bound for bound in targets.bounds([share], [])} == {0.75, 0.70}


@pytest.mark.skipif(BEST.name == "scalar", reason="no instructions here")
def test_peaks_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "LOOPS", 1000)
    rates = targets.peaks(named(BEST.name))
    assert rates["byte"] > 0
    assert rates["float"] > 0
