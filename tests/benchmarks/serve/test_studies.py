"""The server's studies, a few seconds of each, against a real `edge-vla serve` with the demo policy."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.serve import episodes, fairness, faults, fleet, overhead, soak
from benchmarks.serve.server import demo_artifact

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_artifact(tmp_path_factory.mktemp("demo") / "artifact")


def test_overhead(artifact: Path) -> None:
    found = overhead.measure(artifact, 5)
    assert found.websocket.count == found.rest.count == 5
    assert 0 < found.websocket_wire.p50_ms < found.websocket.p50_ms


def test_fairness(artifact: Path) -> None:
    found = fairness.measure(artifact, 1.0)
    assert [len(load.robots) for load in found.loads] == [1, 2, 4, 8, 8]
    wrong = next(target for target in found.targets if "crossed" in target.name)
    assert wrong.met
    assert sum(robot.refused.get("E_SUPERSEDED", 0) for robot in found.overload.robots) > 0


def test_soak(artifact: Path) -> None:
    found = soak.measure(artifact, 0.1, robots=2, hertz=4.0)
    assert (found.load.crossed, found.load.stale, found.load.unanswered) == (0, 0, 0)
    assert found.load.round_trip.count > 0
    assert found.rss_start_mib > 50


def test_episodes(artifact: Path) -> None:
    found = episodes.measure(artifact, 2)
    assert (found.differing_actions, found.differing_episodes) == (0, 0)
    assert found.actions > 2
    assert found.success_in_process == found.success_served


def test_faults(artifact: Path) -> None:
    assert [fault.observed for fault in faults.measure(artifact).faults if not fault.held] == []


def test_fleet(artifact: Path) -> None:
    """On a local Ray of three processes: tokens as in this one; who was lost with a replica is told."""
    pytest.importorskip("ray")
    found = fleet.measure(artifact, 12.0, kills=1)
    assert [target.name for target in found.targets[:3] if not target.met] == []
    assert found.undisturbed.round_trip.count > 50
    assert all(set(robot.refused) <= {"E_ENGINE"} for robot in found.killed.robots)
