"""Recorded actions beside a data set's percentiles: its own are never refused, other conventions are, by name."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_vla.data import Frame, check_pictures, check_recorded, read_frames, synthetic_image, write_frames
from edge_vla.demo.record import episode, record
from edge_vla.demo.render import WORLDS
from edge_vla.errors import EdgeVLAWarning, FrameError
from edge_vla.openvla.config import read_statistics
from edge_vla.openvla.statistics import Statistics

Floats = NDArray[np.float64]
POLICY = Path(__file__).parents[2] / "edge_vla/demo/policy"
# bridge_orig's published percentiles; its gripper is 0 and 1.
Q01 = [-0.02872725, -0.04170350, -0.02609386, -0.08092105, -0.09288700, -0.20718276, 0.0]
Q99 = [0.02830968, 0.04085526, 0.04016159, 0.08192048, 0.07792851, 0.20382575, 1.0]
MASK = [True] * 6 + [False]


def statistics(q01: Sequence[float] = Q01, q99: Sequence[float] = Q99) -> Statistics:
    mask = [True] * (len(q01) - 1) + [False]
    return Statistics({"bridge": {"action": {"q01": list(q01), "q99": list(q99), "mask": mask}}}, "here")


def frames_of(actions: Floats) -> list[Frame]:
    return [Frame(Path(f"{i}.png"), "go", action=tuple(row)) for i, row in enumerate(actions.tolist())]


def check(actions: Floats, known: Statistics | None = None) -> list[str]:
    """What is said of the actions."""
    known = known or statistics()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        check_recorded(frames_of(actions), [next(iter(known))] * len(actions), known)
    assert all(issubclass(one.category, EdgeVLAWarning) for one in said)
    return [str(one.message) for one in said]


def drawn(rng: np.random.Generator, count: int, q01: Floats, q99: Floats) -> Floats:
    """Rows whose 1st and 99th percentiles are these: normal, with a binary gripper."""
    middle, deviation = (q01 + q99) / 2, (q99 - q01) / (2 * 2.3263)
    rows = middle + deviation * rng.standard_normal((count, len(q01)))
    rows[:, -1] = rng.choice([q01[-1], q99[-1]], count)
    return rows


@given(st.integers(0, 2**32), st.integers(1, 300), st.floats(1e-4, 1e4), st.floats(-3, 3))
def test_a_data_sets_own_actions_are_never_refused(seed: int, count: int, scale: float, shift: float) -> None:
    rng = np.random.default_rng(seed)
    q01, q99 = np.array(Q01), np.array(Q99)
    q01[:6], q99[:6] = q01[:6] * scale + shift, q99[:6] * scale + shift
    check(drawn(rng, count, q01, q99), statistics(q01.tolist(), q99.tolist()))


@given(st.integers(0, 2**32))
def test_nothing_is_said_of_a_sound_recording(seed: int) -> None:
    assert check(drawn(np.random.default_rng(seed), 128, np.array(Q01), np.array(Q99))) == []


@pytest.mark.parametrize(("world", "folder"), [(1, "base"), (2, "adapter")])
def test_nothing_is_said_of_the_demo_policys_data(world: int, folder: str, tmp_path: Path) -> None:
    known = read_statistics(POLICY / folder)
    assert known is not None
    frames = [frame for seed in range(8) for frame, _ in episode(None, WORLDS[world], seed)]
    check_recorded(frames, [known.resolve(frame.unnorm_key) for frame in frames], known)
    record(tmp_path, None, WORLDS[world], range(3))
    check_pictures(read_frames(tmp_path))


def edited(change: Callable[[Floats], None], count: int = 64) -> Floats:
    rows = drawn(np.random.default_rng(5), count, np.array(Q01), np.array(Q99))
    change(rows)
    return rows


def signed(rows: Floats) -> None:
    rows[:, 6] = rows[:, 6] * 2 - 1


def degrees(rows: Floats) -> None:
    rows[:, 3:6] *= 180 / math.pi


def millimetres(rows: Floats) -> None:
    rows[:, :3] *= 1000


def percent(rows: Floats) -> None:
    rows[:, 6] *= 100


def absolute(rows: Floats) -> None:
    rows[:, 2] += 0.4


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (signed, r"gripper looks like -1 and 1 where the data set has 0 and 1 \(-1 to 1, q01 to q99 0 to 1\)"),
        (degrees, "roll is .* times as large: degrees for radians.*pitch is .*yaw is .*degrees for radians"),
        (millimetres, "x is .* times as large: millimetres for metres.*y is .*z is .*millimetres for metres"),
        (percent, "gripper is 1e.02 times as large"),
        (absolute, "z is .* times as large|z lies wholly outside"),
    ],
)
def test_another_convention_is_refused_by_dimension(change: Callable[[Floats], None], told: str) -> None:
    with pytest.raises(FrameError, match=told) as refused:
        check(edited(change))
    assert "\n" not in str(refused.value)


@given(st.integers(0, 2**32), st.integers(20, 200), st.sampled_from([signed, degrees, millimetres]))
def test_conventions_are_refused_however_they_are_drawn(
    seed: int, count: int, change: Callable[[Floats], None]
) -> None:
    rows = drawn(np.random.default_rng(seed), count, np.array(Q01), np.array(Q99))
    rows[:6, 6] = [0, 1, 0, 1, 0, 1]
    rows[: count // 2, 6] = 0
    change(rows)
    with pytest.raises(FrameError, match="not in the units or convention"):
        check(rows)


def test_the_other_sign_is_refused() -> None:
    known = statistics([0.01, 0.0], [0.09, 1.0])
    with pytest.raises(FrameError, match="dimension 0 has the other sign"):
        check(np.tile([-0.05, 1.0], (8, 1)) * np.linspace(0.5, 1, 8)[:, None], known)


def test_shares_outside_are_said_by_dimension() -> None:
    def faster(rows: Floats) -> None:
        rows[:, 0] *= 3
        rows[:, 4] *= 2

    (said,) = check(edited(faster, 400))
    assert "'bridge', where OpenVLA clips them: x 4" in said
    assert ", pitch 2" in said
    assert "yaw" not in said


def test_normalised_already_is_said() -> None:
    rows = np.random.default_rng(0).uniform(-1, 1, (40, 7))
    rows[:, 6] = 1
    known = statistics([-0.3] * 6 + [0.0], [0.3] * 6 + [1.0])
    (said,) = check(rows, known)
    assert "normalised already?" in said


def test_larger_units_and_dimensions_that_never_move_are_said() -> None:
    rows = drawn(np.random.default_rng(0), 40, np.array(Q01), np.array(Q99))
    rows[:, :6] /= 1000
    (said,) = check(rows)
    assert "larger units than the data set's" in said
    fixed = statistics([*Q01[:5], 0.0, 0.0], [*Q99[:5], 0.0, 1.0])
    rows[:, :6] *= 1000
    (said,) = check(rows, fixed)
    assert "move yaw, which never move in 'bridge'" in said


@pytest.mark.parametrize("action", [(0.0,) * 6, (0.0,) * 8, (0.0,) * 6 + (math.nan,), (math.inf,) + (0.0,) * 6, ()])
def test_unsound_actions_are_refused(action: tuple[float, ...]) -> None:
    frames = frames_of(edited(lambda _: None))
    frames[3] = dataclasses.replace(frames[3], action=action)
    with pytest.raises(FrameError, match=r"3\.png: expected 7 finite numbers as action"):
        check_recorded(frames, ["bridge"] * len(frames), statistics())


def write_pictures(folder: Path, numbers: Sequence[int], *, moving: bool = True) -> list[Frame]:
    """An episode that shows the pictures `numbers`; 0 is black."""
    shown = []
    for step, number in enumerate(numbers):
        image = synthetic_image(number, 16).point(lambda value: 0) if number == 0 else synthetic_image(number, 16)
        action = (0.01 * (step % 3 if moving else 1), *(0.0,) * 6)
        shown.append((Frame(Path(f"{step:02d}.png"), "go", "bridge", "e", step, action), image))
    write_frames(folder, shown)
    return read_frames(folder)


def test_black_and_frozen_pictures_are_said(tmp_path: Path) -> None:
    frames = write_pictures(tmp_path, [0, 1, *[2] * 9, 3, 0])
    with pytest.warns(EdgeVLAWarning) as said:
        check_pictures(frames)
    assert [str(one.message) for one in said] == [
        "2 of 13 pictures are of one colour: a camera that gave none?",
        "02.png and 8 frames after it are one picture while the recorded actions change (runs like it: 1): a camera "
        "that froze?",
    ]


def test_a_robot_that_waits_is_no_frozen_camera(tmp_path: Path) -> None:
    check_pictures(write_pictures(tmp_path, [1, *[2] * 12, 3], moving=False))
    check_pictures(write_pictures(tmp_path, [1, *[2] * 7, 3]))
