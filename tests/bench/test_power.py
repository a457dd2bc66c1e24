"""Energy of an action from stretches: only sensors that saw all of it, and a reason where there is none."""

from __future__ import annotations

import dataclasses

from edge_vla.bench import power
from edge_vla.bench import result as r
from edge_vla.bench.reports import performance_tables
from edge_vla.bench.reports.sections import sections
from edge_vla.device.energy import Joules, Slowed, Stretch
from edge_vla.device.sensors import Range
from tests.bench.sample_result import sample_result


def stretch(gpu: tuple[str, ...] = (), cpu_events: int | None = None, **joules: float) -> Stretch:
    seen = {name: Joules(joules=value, seconds=2, highest_w=value / 2 + 1) for name, value in joules.items()}
    slowed = Slowed(gpu=gpu, cpu_events=cpu_events, over_current_events=None)
    return Stretch(joules=seen, slowed=slowed, temperatures_c={"tj": Range(lowest=50, highest=50 + len(gpu))})


def test_joules_of_all_blocks_over_their_actions() -> None:
    found = power.summary([stretch(module=30), stretch(module=50)], 16, None)
    assert found is not None
    (energy,) = found.energy
    assert (energy.joules_per_action, energy.mean_w, energy.highest_w, energy.seconds) == (5, 20, 26, 4)
    assert found.withheld is None


def test_a_sensor_that_missed_a_block_gives_no_figure() -> None:
    found = power.summary([stretch(module=30, card=9), stretch(card=9)], 6, None)
    assert found is not None
    assert [one.sensor for one in found.energy] == ["card"]


def test_silence_is_a_reason_and_no_zero() -> None:
    for said, expected in (("no power rail", "no power rail"), (None, "its sensors did not answer while")):
        found = power.summary([stretch(), stretch()], 6, said)
        assert found is not None
        assert found.energy == []
        assert str(found.withheld).startswith(expected)
    assert power.summary([], 0, None) is None


def test_throttling_is_of_all_blocks_and_unknown_stays_unknown() -> None:
    blocks = [stretch(("software power cap",), 2, m=1.0), stretch(("hardware slowdown",), 3, m=1.0)]
    found = power.summary(blocks, 6, None)
    assert found is not None
    assert found.throttling.gpu == ["hardware slowdown", "software power cap"]
    assert found.throttling.cpu_events == 5
    assert found.throttling.over_current_events is None
    assert found.throttling.temperatures_c == {"tj": Range(lowest=50, highest=51)}


def drawn(energy: r.PowerDraw | None) -> r.Result:
    """The sample with this of its first candidate."""
    result = sample_result()
    first, *rest = result.candidates
    measured = dataclasses.replace(first.performance, power=energy)
    return dataclasses.replace(result, candidates=[dataclasses.replace(first, performance=measured), *rest])


def test_a_report_shows_joules_or_why_there_are_none() -> None:
    blocks = [stretch(("software power cap",), 2, module=30.0)]
    table = performance_tables.energy(drawn(power.summary(blocks, 4, None)))
    assert table is not None
    assert table.columns == ["system, sensor", "energy of an action", "mean", "highest", "actions"]
    assert table.rows[0][1:] == ["7.5 J", "15 W", "16 W", "4"]
    result = drawn(power.summary([stretch()], 4, "no power rail, no RAPL and no NVML on this machine"))
    table = performance_tables.energy(result)
    assert table is not None
    assert table.rows[0][1] == "no power rail, no RAPL and no NVML on this machine"
    assert not any(" J" in cell for row in table.rows for cell in row[1:])
    assert "power" in [section.name for section in sections(result)]
    assert "power" not in [section.name for section in sections(drawn(None))], "an old result measured none"
