"""Two checkouts are benched in turns, and one that fails says why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks import study
from benchmarks.checkouts import bench, compare
from edge_vla.errors import BackendError


@pytest.mark.slow
def test_a_checkout_is_as_fast_as_itself(tiny_artifacts: Mapping[int, Path]) -> None:
    found = compare(study.ROOT, tiny_artifacts[8], "random:openvla-tiny", "brief", rounds=1)
    assert len(found.before_p50_ms) == len(found.after_p50_ms) == 2
    assert found.before_commit == found.after_commit
    assert found.speedup.blocks == 2
    assert found.speedup.low is not None
    assert found.kernels


def test_a_run_that_fails_says_which_and_why(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=f"bench of {study.ROOT.name} failed .*no-artifact"):
        bench(study.ROOT, tmp_path / "no-artifact", "random:openvla-tiny", "brief", tmp_path / "out")
