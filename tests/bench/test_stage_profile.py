"""The stage profile of an action: every stage measured, and each beside its limit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import edge_vla
from edge_vla.bench.stage_profile import stage_profile
from edge_vla.data import synthetic_image
from edge_vla.device.limits import Ceilings


def test_the_stage_profile_of_an_action(tiny_artifacts: Mapping[int, Path]) -> None:
    policy = edge_vla.load(tiny_artifacts[4], "cpu", check=False)
    ceilings = Ceilings(1e9, {"bf16": 1e9}, "made up")
    found = stage_profile(policy, synthetic_image(0, 28), "open the drawer", actions=3, ceilings=ceilings)
    assert list(found.measured_ms) == ["preprocess", "wait", "vision", "prefill", "decode", "detokenise", "total"]
    limited = {row.name for row in found.limits.stages if row.share}
    assert {"vision", "prefill", "decode"} <= limited
