"""The recipe of the demo policy: in order, resumable, and its comparison with what ships is honest."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import study
from benchmarks.demo_policy import reproduce, runs, train
from benchmarks.demo_policy.reproduce import RECIPE
from benchmarks.demo_policy.stages import STAGES
from edge_vla.errors import FrameError, ResourceError

RESULTS = study.ROOT / "benchmarks" / "results"
SHIPPED = [RESULTS / f"demo-policy-world{number}.json" for number in (1, 2)]


def test_every_part_begins_with_one_that_came_before() -> None:
    for index, part in enumerate(RECIPE):
        assert part.source is None or part.source in [before.stage for before in RECIPE[:index]]
        assert 0 < part.steps <= STAGES[part.stage].steps


def test_commands_run_in_order_and_evaluation_is_not_repeated(tmp_path: Path) -> None:
    said: list[list[str]] = []

    def instead(module: str, *words: object) -> None:
        said.append([module, *map(str, words)])
        if module == "evaluate":
            Path(said[-1][-1]).write_text("{}")

    for _ in range(2):
        assert list(reproduce.train_all(tmp_path, 1, instead)) == [part.stage for part in RECIPE]
    assert [words[2] for words in said[: len(RECIPE)]] == [part.stage for part in RECIPE]
    assert said[2][-4:] == ["--from", str(tmp_path / "look"), "--until", "981"]
    results = reproduce.evaluate_all(tmp_path, 1, instead)
    assert reproduce.evaluate_all(tmp_path, 1, instead) == results
    assert [words[0] for words in said].count("evaluate") == 2


@pytest.mark.slow
def test_a_stage_that_ends_badly_ends_it_all() -> None:
    with pytest.raises(ResourceError, match=r"demo_policy\.train --stage none ended with exit code 2: .* same command"):
        reproduce.command("train", "--stage", "none")


@pytest.mark.slow
def test_a_part_that_was_done_stays_as_it_is(tmp_path: Path) -> None:
    small = replace(STAGES["act"], name="small", steps=3, batch=2, prompts=1, warmup=2)
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            train.train(train.begin(small, None), small, tmp_path, compiled=False, workers=0, until=1)
        assert not end.value.code
        assert runs.load(tmp_path / "state.pt")["step"] == 1


def test_what_ships_differs_from_itself_by_nothing() -> None:
    rows = reproduce.compare(SHIPPED, SHIPPED)
    assert {"pick", "put", "world 2 pick, adapter", "world 2 put, adapter"} <= rows.keys()
    assert all(row.difference == 0 and row.within_tolerance for row in rows.values())


def moved(tmp_path: Path, by: float) -> Sequence[Path]:
    result = json.loads(SHIPPED[0].read_text())
    result["closed loop"]["pick"]["success"] += by
    (tmp_path / "world1.json").write_text(json.dumps(result))
    return [tmp_path / "world1.json", SHIPPED[1]]


def test_a_difference_has_its_sign_and_its_verdict(tmp_path: Path) -> None:
    rows = reproduce.compare(SHIPPED, moved(tmp_path, -0.04))
    assert rows["pick"].difference == pytest.approx(-0.04)
    assert not rows["pick"].within_tolerance
    assert reproduce.compare(SHIPPED, moved(tmp_path, 0.03))["pick"].within_tolerance


def test_other_trials_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match="different conditions"):
        reproduce.compare(SHIPPED, SHIPPED[:1])
    (tmp_path / "other.json").write_text("[]")
    for path in (tmp_path / "other.json", tmp_path / "none.json"):
        with pytest.raises(FrameError, match=r"no result|not a readable result"):
            reproduce.compare(SHIPPED, [path])
