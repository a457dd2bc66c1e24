"""The cost of commands: each runs in a process of its own, and its ETA is compared with the time taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.commands import disk_bytes, measure, split
from edge_vla.errors import BackendError


@pytest.mark.slow
def test_expected_time_is_compared_with_the_time_taken(tmp_path: Path) -> None:
    arguments = ["export", "random:openvla-tiny", "--bits", "8", "--out", str(tmp_path / "artifact")]
    cost = measure(arguments)
    assert len(cost.eta_errors) >= 4, "a line a layer, and the stages after them"
    assert all(0 < one.at_s <= cost.wall_s for one in cost.eta_errors)
    last = cost.eta_errors[-1]
    assert last.expected_over_actual == pytest.approx(last.at_s / cost.wall_s, abs=0.1)
    assert disk_bytes([arguments])["artifact"] > 10_000


def test_a_command_runs_and_must_succeed() -> None:
    cost = measure(["--version"], repeat=2)
    assert cost.runs == 2
    assert cost.last_line
    assert cost.wall_s >= cost.fastest_wall_s > 0
    with pytest.raises(BackendError, match="nowhere"):
        measure(["verify", "nowhere"])


def test_commands_are_split() -> None:
    assert list(split(["a", "b", "--then", "c"])) == [["a", "b"], ["c"]]
