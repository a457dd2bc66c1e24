"""Old names of options still work for one version, and say what they are called now."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_vla.cli import main
from edge_vla.errors import UsageError
from edge_vla.options import RENAMED, choice, modernise


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["bench", "a", "--table", "demo:1"], ["bench", "a", "--env", "demo:1"]),
        (["bench", "a", "--table=demo:1"], ["bench", "a", "--env=demo:1"]),
        (["bench", "a", "--waterfall"], ["bench", "a", "--stage-profile"]),
        (["bench", "--floor", "rounding shaken"], ["bench", "--floor", "rounding noise"]),
        (["bench", "--floor=rounding shaken"], ["bench", "--floor=rounding noise"]),
        (["bench", "--profile", "few"], ["bench", "--profile", "brief"]),
    ],
)
def test_an_old_name_becomes_the_new_one_with_one_notice(old: list[str], new: list[str]) -> None:
    current, notices = modernise(old)
    assert current == new
    assert len(notices) == 1
    assert "is now" in notices[0]


def test_a_notice_is_given_once() -> None:
    current, notices = modernise(["bench", "--floor", "rounding shaken", "--floor", "rounding shaken"])
    assert current == ["bench", "--floor", "rounding noise", "--floor", "rounding noise"]
    assert len(notices) == 1


@given(st.lists(st.sampled_from(["run", "x", "--image", "few", "rounding shaken", "--env", "demo:1", "-h"])))
def test_words_of_today_are_left_alone(words: list[str]) -> None:
    """A value is old only behind its option, and an option only under its command."""
    assert modernise(["run", *words]) == (["run", *words], [])


def test_an_old_option_works_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["bench", "nowhere", "--reference", "nowhere", "--out", "nowhere", "--table", "nonsense"])
    assert end.value.code == UsageError.exit_code
    said = capsys.readouterr().err
    assert "--table is now --env" in said
    assert "Traceback" not in said


def test_new_names_are_options_that_the_command_has(capsys: pytest.CaptureFixture[str]) -> None:
    for command in {command for command, _ in RENAMED}:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown = capsys.readouterr().out
        assert all(new in shown for (owner, _), new in RENAMED.items() if owner == command)
        assert not any(old in shown for owner, old in RENAMED if owner == command)


def test_a_wrong_choice_lists_the_right_ones() -> None:
    with pytest.raises(UsageError, match="--head middle: choose one of actions, full"):
        choice("--head", "middle", ("actions", "full"))
