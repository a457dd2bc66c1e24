"""The whole comparison on a tiny policy: real processes, a real result, a report that quotes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from edge_vla.benchmarks.bench import Reference, bench
from edge_vla.benchmarks.report import markdown
from edge_vla.errors import UsageError
from tests.conftest import TINY


@pytest.fixture(scope="module")
def results(tiny_artifacts: Mapping[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, Path]:
    root = tmp_path_factory.mktemp("bench")
    for bits in (4, 16):
        bench(tiny_artifacts[bits], Reference(TINY, limit=12), root / str(bits))
    return {bits: root / str(bits) for bits in (4, 16)}


def load(directory: Path) -> dict[str, object]:
    result: dict[str, object] = json.loads((directory / "result.json").read_text())
    return result


def test_16_bits_agree_in_every_token(results: Mapping[int, Path]) -> None:
    agreement = json.loads((results[16] / "result.json").read_text())["agreement"]
    assert agreement["exact_tokens"]["mean"] == 1.0
    assert agreement["teacher_forced"]["mean"] == 1.0
    assert agreement["high_margin_flips"] == 0
    assert agreement["high_margin_tokens"] > 0, "an empty set proves nothing"


def test_int4_differs_and_the_floor_stands_beside(results: Mapping[int, Path]) -> None:
    result = json.loads((results[4] / "result.json").read_text())
    assert result["agreement"]["teacher_forced"]["mean"] < result["noise_floor"]["teacher_forced"]["mean"] <= 1.0
    assert result["frames"] == {"source": "synthetic", "count": 12}


def test_what_a_figure_needs_is_in_the_result(results: Mapping[int, Path]) -> None:
    result = json.loads((results[4] / "result.json").read_text())
    assert {"command", "commit", "device", "time", "torch"} <= set(result["environment"])
    for side in result["measured"].values():
        assert side["peak_bytes"] > side["steady_bytes"] * 0.9 > 0
        assert side["p50_ms"] > 0
        assert side["p90_ms"] is None, "12 queries cannot carry a 90th percentile"
        assert sum(side["weight_bytes"].values()) > 0
    assert (
        result["measured"]["candidate"]["weight_bytes"]["decoder"]
        < result["measured"]["reference"]["weight_bytes"]["decoder"] / 3
    )


def test_the_report_quotes_the_result(results: Mapping[int, Path]) -> None:
    report = (results[4] / "report.md").read_text()
    result = json.loads((results[4] / "result.json").read_text())
    assert report == markdown(result)
    assert f"{result['agreement']['teacher_forced']['mean']:.2%}" in report
    assert "n/a (n=12)" in report


def test_policies_of_different_shapes_are_not_compared(
    tiny_artifacts: Mapping[int, Path], golden_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="different networks"):
        bench(tiny_artifacts[4], Reference(str(golden_checkpoint)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
