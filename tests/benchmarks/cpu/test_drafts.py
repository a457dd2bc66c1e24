"""The draft study: what is counted, which records are kept, and an episode of the demo policy."""

from __future__ import annotations

from pathlib import Path

import pytest

import edge_vla
from benchmarks.cpu import drafts
from benchmarks.cpu.draft_strategies import STRATEGIES
from benchmarks.cpu.drafts import Attempt, Record
from edge_vla.demo import BASE


def attempt(drafted: tuple[int, ...], passes: int, different: int = 0) -> Attempt:
    return Attempt(drafted, passes, different, 1.0)


def record(phase: drafts.Phase, one: Attempt) -> Record:
    return Record(phase, (5, 6), 2.0, {"bitwise exact": {"previous": one}, "draft in prefill": {}})


EPISODES = [
    [record("reach", attempt((), 6)), record("reach", attempt((5, 7), 2))],
    [record("carry", attempt((5, 6), 1, 2))],
]


def test_what_is_counted() -> None:
    row = drafts.summary(EPISODES, "bitwise exact", "previous")
    assert row is not None
    assert (row.actions, row.different_actions, row.different_tokens) == (3, 1, 2)
    assert row.actions_by_passes == {"1": 1, "2": 1, "6": 1}
    assert row.passes_per_action.mean == 3
    found = row.acceptance
    assert found is not None
    assert found.drafted_actions == 2
    assert (found.overall.mean, found.whole_action.mean) == (0.75, 0.5)
    assert [one.mean for one in found.by_dimension] == [1.0, 0.5]
    assert found.reach is not None
    assert found.carry is not None
    assert (found.reach.mean, found.carry.mean) == (0.5, 1.0)
    assert (found.within_one_bin, found.within_one_bin_by_dimension) == (1, [1, 1])
    assert drafts.summary(EPISODES, "draft in prefill", "previous") is None


def test_what_passes_cost() -> None:
    plain, faster = Attempt((), 6, 0, 4.0), Attempt((5, 6), 1, 0, 2.0)
    attempts = {"bitwise exact": {"none": plain, "previous": faster, "neighbours, 8 rows": faster}}
    episodes = [[Record("reach", (5, 6), 2.0, attempts)]]
    found = drafts.cost(episodes, "bitwise exact", "previous")
    assert found is not None
    assert (found.decoder_ms, found.decoder_speedup, found.action_speedup) == (2.0, 2.0, 1.5)
    assert drafts.cost(episodes, "bitwise exact", "neighbours, 8 rows") is None, "a simulation has no time"


def test_records_come_back_without_a_line_that_was_cut_off(tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    assert drafts.read_records([records]) == []
    for episode in EPISODES:
        drafts.append_record(records, episode)
    with records.open("a", encoding="utf-8") as file:
        file.write('[{"phase": "car')
    assert drafts.read_records([records, records]) == EPISODES * 2


@pytest.mark.slow
def test_an_episode_of_the_demo_policy() -> None:
    strategies = drafts.Strategies(edge_vla.load(BASE, "cpu"), 2, 1, None)
    records = strategies.episode(0, list(STRATEGIES))
    for name in STRATEGIES:
        row = drafts.summary([records], "bitwise exact", name)
        assert row is not None
        assert row.different_tokens == 0
        in_prefill = drafts.summary([records], "draft in prefill", name)
        assert (in_prefill is None) == name.startswith("head"), "heads need the prefill's output"
    assert records[1].attempts["bitwise exact"]["previous"].drafted == records[0].plain
