"""A declaration says everything or does not start; units are turned by the formulas of the units themselves."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_vla.errors import UsageError
from edge_vla.robot import Declaration
from edge_vla.robot.units import Jaws, Meaning
from tests.robot.robots import EXAMPLE, LINE


def read(folder: Path, text: str) -> Declaration:
    path = folder / "arm.toml"
    path.write_text(text, encoding="utf-8")
    return Declaration.read(path)


def test_the_example_is_read(tmp_path: Path) -> None:
    robot = read(tmp_path, EXAMPLE)
    assert (robot.dims, robot.moving, robot.lengths) == (7, (0, 1, 2, 3, 4, 5), (0, 1, 2))
    assert robot.lapse_s == 0.6
    assert robot.gripper is not None
    assert robot.gripper.debounce == 3
    assert robot.workspace is not None
    assert robot.workspace.high == (200.0, 200.0, 300.0)


def test_the_page_shows_a_declaration_that_starts(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "robot.md"
    (shown,) = re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    assert read(tmp_path, shown).dims == 7


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("[policy]", 'units = ["m", "m", "m", "rad", "rad", "rad", "gripper"]'),
        ("[robot]", 'units = ["mm", "mm", "mm", "deg", "deg", "deg", "gripper"]'),
        ("[policy]", "gripper = { open = 1.0, closed = 0.0 }"),
        ("[robot]", "gripper = { open = -1.0, closed = 1.0 }"),
    ],
)
def test_without_units_or_gripper_it_does_not_start(tmp_path: Path, table: str, line: str) -> None:
    with pytest.raises(UsageError) as refused:
        read(tmp_path, EXAMPLE.replace(f"{line}\n", "", 1))
    assert table in str(refused.value)
    example = str(refused.value).splitlines()[-1].strip()
    assert example.startswith(line.split()[0])
    read(tmp_path, EXAMPLE.replace(line, example, 1))  # what it says helps


@pytest.mark.parametrize("table", ["policy", "robot"])
def test_without_a_table_the_message_has_all_its_lines(tmp_path: Path, table: str) -> None:
    rest = re.sub(rf"\[{table}\]\n.*?\n\n", "", EXAMPLE, flags=re.S)
    with pytest.raises(UsageError) as refused:
        read(tmp_path, rest)
    lines = [line.strip() for line in str(refused.value).splitlines()[1:]]
    assert len(lines) == 3
    read(tmp_path, rest + "\n" + "\n".join(lines))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"mm", "mm", "mm", "deg"', '"mm", "mm", "deg", "deg"', "dimension 2 is in m for the policy and in deg"),
        ('"mm", "mm", "mm", "deg"', '"inch", "mm", "mm", "deg"', "expected one of"),
        ('["mm", "mm", "mm", "deg",', '["mm", "mm", "deg",', "name one unit for each dimension"),
        ("open = -1.0, closed = 1.0", "open = 1.0, closed = 1.0", "two numbers that differ"),
        ("open = -1.0, closed = 1.0", "open = nan, closed = 1.0", "two numbers that differ"),
        ("open = -1.0, closed = 1.0", "open = -1.0", "closed"),
        ('at_rest = "open"', 'at_rest = "half"', "expected one of"),
        ('[gripper]\nat_rest = "open"\ndebounce = 3\n', "", "at_rest"),
        ("debounce = 3", "debounce = 0", "at least 1"),
        ("period_ms = 200", "period_ms = 0", "period_ms"),
        ("period_ms = 200", "period_ms = inf", "period_ms"),
        ('actions = "delta"', 'actions = "velocity"', "expected one of"),
        ('bounds = "statistics"', "", 'bounds = "statistics", or low and high'),
        ('bounds = "statistics"', 'bounds = "statistics"\nlow = [0]\nhigh = [1]', "or low and high"),
        ("step = [20, 20, 20, 5, 5, 5]", "step = [20, 20]", "limits.step has 2 numbers, expected 6"),
        ("jerk = [10,", "jerk = [-1,", "above zero"),
        ("jerk = [10,", "jerk = [nan,", "finite"),
        ("low = [-200, -200, -100]", "low = [-200, -200, 300]", "below workspace.high"),
        ('axes = "base"', 'axes = "tool"', "do not add up"),
        ('axes = "base"\n', "", "axes"),
        ('on_stale = "hold"', 'on_stale = "go on"', "expected one of"),
        ("recover = 3", "recover = -1", "recover"),
        ("recover = 3", "after_ms = 0", "after_ms"),
        ("recover = 3", "after_ms = 50", "below a period"),
        ("recover = 3", "after_ms = 1e308", "after_ms"),  # no wait is that long: the watchdog would die of it
        ("period_ms = 200", "period_ms = 1e-300", "period_ms"),
        ("period_ms = 200", "period_ms = 1e308", "period_ms"),
        ("period_ms = 200", f"period_ms = 1{'0' * 400}", "too large"),
        ('name = "arm-1"\n', "", "does not say 'name'"),
        ("open = -1.0, closed = 1.0", "open = -1.0", "robot.gripper does not say 'closed'"),
        ("recover = 3", "latch = true", "unknown key 'latch'"),
        ("[watchdog]", "[watchdog", "is not TOML"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in EXAMPLE
    with pytest.raises(UsageError, match=re.escape(says)):
        read(tmp_path, EXAMPLE.replace(old, new, 1))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"docs/robot\.md"):
        Declaration.read(tmp_path / "none.toml")


def test_units_are_turned(tmp_path: Path) -> None:
    robot = read(tmp_path, EXAMPLE)
    found = robot.to_robot(np.array([0.01, -0.02, 0.0, math.pi / 2, -math.pi, 0.0, 0.75]))
    assert found == pytest.approx([10.0, -20.0, 0.0, 90.0, -180.0, 0.0, -0.5])
    assert robot.to_robot(np.array([0, 0, 0, 0, 0, 0, 1.0]))[6] == -1.0  # open
    assert robot.to_robot(np.array([0, 0, 0, 0, 0, 0, 0.0]))[6] == 1.0  # closed


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=2))
def test_the_same_units_keep_every_bit(values: list[float]) -> None:
    assert [one.hex() for one in LINE.to_robot(np.array(values)).tolist()] == [one.hex() for one in values]


@given(st.floats(-10, 10), st.sampled_from([(1.0, 0.0), (0.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (0.0, 255.0)]))
def test_a_gripper_there_and_back(value: float, values: tuple[float, float]) -> None:
    there = dataclasses.replace(LINE, robot=Meaning(("m", "gripper"), Jaws(*values)))
    back = dataclasses.replace(LINE, policy=there.robot, robot=there.policy)
    assert back.to_robot(there.to_robot(np.array([0.0, value])))[1] == pytest.approx(value, abs=1e-12)


def test_another_number_of_dimensions_is_refused() -> None:
    with pytest.raises(UsageError, match="takes 2 numbers"):
        LINE.to_robot(np.zeros(7))
