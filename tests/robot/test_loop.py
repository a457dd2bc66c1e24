"""The closed loop in real time, with a camera, a policy and a robot that do as a test says.

Every turn that was due is accounted for, and nothing late, frozen, black or cut ever moves the robot.
"""

from __future__ import annotations

import ast
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import edge_vla.robot
from edge_vla.errors import NumericError, ResourceError
from edge_vla.robot.asker import Answer, Asker, NoAction
from edge_vla.robot.cameras.checked import Checked
from edge_vla.robot.faces import CameraError, Command, LinkError, Picture
from edge_vla.robot.loop import LapsedError, Loop, Watcher
from edge_vla.robot.ticks import Percentiles, Tally, Tick
from edge_vla.robot.units import Declaration, Lapse, Sight
from tests.robot.robots import line

ROBOT = line(watchdog=Lapse("hold", after_ms=550, recover=2), camera=Sight(max_age_ms=200, frozen_ms=250))
STEP = 0.004


class Rig:
    """A loop and its three ends. Faults are set by the turn at which the camera, or the policy, is asked."""

    name = "rig"

    def __init__(self, robot: Declaration = ROBOT) -> None:
        self.turn, self.images, self.numbers = 0, 0, 0
        self.camera_fault: Callable[[int], CameraError | None] = lambda turn: None
        self.image: Callable[[int], np.ndarray] = lambda turn: np.full((16, 16, 3), 50 + turn % 200, np.uint8)
        self.answer: Callable[[int, float], Answer] = lambda turn, deadline: Answer(np.array([STEP, 1.0]))
        self.link_fault: Callable[[int], LinkError | None] = lambda turn: None
        self.commands, self.ticks, self.lapses = list[Command](), list[Tick](), list[str]()
        self.closed = 0
        self.loop = Loop(
            robot,
            Checked(self, robot.camera),
            self,
            self,
            watcher=Watcher(self.ticks.append, lambda reason, detail: self.lapses.append(detail)),
        )

    def newest(self, after: int, until: float) -> Picture:
        self.turn += 1
        fault = self.camera_fault(self.turn)
        if fault is not None:
            time.sleep(max(0.0, until - time.monotonic()) if fault.fault == "silent" else 0.0)
            raise fault
        self.numbers += 1
        return Picture(self.image(self.turn), time.monotonic() - 0.005, max(after, self.numbers) + 1)

    def act(self, picture: Picture, deadline: float) -> Answer:
        return self.answer(self.turn, deadline)

    def reset(self) -> None: ...

    def ready(self) -> None:
        if (fault := self.link_fault(self.turn + 1)) is not None:
            raise fault

    def send(self, command: Command) -> None:
        assert time.monotonic() < command.valid_until
        self.commands.append(command)

    def close(self) -> None:
        self.closed += 1

    def run(self, seconds: float = 1.0) -> None:
        try:
            self.loop.run(seconds)
        finally:
            assert self.loop.close()

    @property
    def kinds(self) -> list[str]:
        return [command.kind for command in self.commands]

    def missed(self) -> dict[str, int]:
        return dict(self.loop.tally.missed)


def sound(rig: Rig) -> None:
    """What holds of every run."""
    tally = rig.loop.tally
    assert [tick.number for tick in rig.ticks] == list(range(len(rig.ticks)))
    assert tally.ticks == len(rig.ticks) == tally.acted + sum(tally.missed.values())
    assert rig.kinds.count("action") == tally.acted
    assert [command.number for command in rig.commands] == list(range(1, len(rig.commands) + 1))
    if rig.commands:
        assert rig.commands[-1].values[0] == 0.0


def test_it_keeps_its_rate_and_every_action_reaches_the_robot() -> None:
    rig = Rig()
    began = time.monotonic()
    rig.run(1.0)
    sound(rig)
    assert len(rig.ticks) == 10
    assert set(rig.missed()) <= {"late", "overrun", "policy busy"}
    assert 0.95 < time.monotonic() - began < 3.0
    assert rig.loop.tally.acted >= 5  # a busy machine
    acted = [tick for tick in rig.ticks if not tick.missed]
    assert all(tick.sent == (STEP, 1.0) or any(tick.causes or ()) for tick in acted)
    assert all(5 <= (tick.age_ms or 0) < 200 for tick in acted)


def test_a_late_action_is_dropped_and_counted_and_never_sent() -> None:
    rig = Rig()

    def answer(turn: int, deadline: float) -> Answer:
        if turn == 5:
            time.sleep(0.25)
        return Answer(np.array([STEP if turn != 5 else 0.019, 1.0]))

    rig.answer = answer
    rig.run(1.5)
    sound(rig)
    assert rig.missed()["late"] >= 1
    assert rig.missed().get("policy busy", 0) >= 1
    assert not any(command.values[0] > 0.015 for command in rig.commands)


def test_an_action_that_the_server_calls_stale_is_not_sent() -> None:
    rig = Rig()
    rig.answer = lambda turn, deadline: Answer(np.array([STEP, 1.0]), time.monotonic() + (1.0 if turn < 4 else -0.001))
    rig.run(1.3)
    sound(rig)
    assert rig.missed()["late"] >= 4
    assert rig.loop.tally.lapses == {"late": 1}


@pytest.mark.parametrize("fault", ["unplugged", "unreadable"])
def test_a_camera_that_fails_holds_at_once_and_goes_on_when_it_is_back(fault: str) -> None:
    rig = Rig()
    rig.camera_fault = lambda turn: CameraError(fault, "plug it in") if 5 <= turn <= 8 else None  # type: ignore[arg-type]
    rig.run(1.6)
    sound(rig)
    assert rig.missed()[f"camera {fault}"] == 4
    assert rig.loop.tally.lapses == {f"camera {fault}": 1}
    assert rig.lapses == ["plug it in"]
    held = [tick.number for tick in rig.ticks if tick.missed == "held"]
    assert len(held) >= 1
    assert rig.ticks[-1].missed == ""
    first = next(i for i, kind in enumerate(rig.kinds) if kind == "hold")
    assert rig.commands[first].taken is None


def test_a_silent_camera_is_waited_for_until_the_watchdog_says_so_and_why() -> None:
    rig = Rig()
    rig.camera_fault = lambda turn: CameraError("silent", "no picture came") if turn >= 4 else None
    rig.run(1.5)
    sound(rig)
    assert rig.loop.tally.lapses == {"camera silent": 1}
    assert "no fresh action for" in rig.lapses[0]
    assert "no picture came" in rig.lapses[0]


def test_a_frozen_and_a_black_camera_hold_with_the_next_command() -> None:
    rig = Rig()
    still, black = np.full((16, 16, 3), 99, np.uint8), np.zeros((16, 16, 3), np.uint8)
    moving = rig.image
    rig.image = lambda turn: still if 3 <= turn <= 9 else black if 15 <= turn <= 17 else moving(turn)
    rig.run(2.4)
    sound(rig)
    assert rig.missed()["camera frozen"] >= 2
    assert rig.missed()["camera black"] == 3
    assert rig.loop.tally.lapses == {"camera frozen": 1, "camera black": 1}
    assert "start it again" in rig.lapses[0]
    assert "take off its cap" in rig.lapses[1]


def test_a_link_that_is_cut_is_not_asked_for_and_the_policy_neither() -> None:
    rig = Rig()
    asked: list[int] = []

    def answer(turn: int, deadline: float) -> Answer:
        asked.append(turn)
        return Answer(np.array([STEP, 1.0]))

    cut = [False]
    rig.answer = answer
    rig.link_fault = lambda turn: LinkError("cut", "start the robot's program", taken=False) if cut[0] else None
    threading.Timer(0.45, lambda: cut.__setitem__(0, True)).start()
    threading.Timer(0.95, lambda: cut.__setitem__(0, False)).start()
    rig.run(1.6)
    sound(rig)
    assert rig.missed()["link cut"] >= 3
    assert len(asked) <= len(rig.ticks) - rig.missed()["link cut"]
    assert rig.loop.tally.lapses == {"link cut": 1}
    assert rig.ticks[-1].missed == ""


def test_a_command_that_the_link_loses_is_a_miss_with_its_reason() -> None:
    rig = Rig()
    whole = rig.send

    def send(command: Command) -> None:
        if command.kind == "action" and rig.turn == 4:
            raise LinkError("silent", "no answer")
        whole(command)

    rig.loop._sink.send = send  # type: ignore[method-assign]
    rig.run(1.0)
    assert rig.missed()["link silent"] == 1
    assert rig.loop.tally.lapses == {"link silent": 1}


def test_a_policy_that_gives_no_action_is_counted_by_its_reason() -> None:
    rig = Rig()

    def answer(turn: int, deadline: float) -> Answer:
        if turn in (3, 6):
            raise NoAction("server E_OVERLOAD", "try again")
        return Answer(np.array([STEP, 1.0]))

    rig.answer = answer
    rig.run(1.0)
    sound(rig)
    assert rig.missed()["server E_OVERLOAD"] == 2
    assert rig.loop.tally.lapses == {}


@pytest.mark.parametrize("bad", [np.array([np.nan, 1.0]), np.array([0.0, np.inf])])
def test_a_number_that_is_not_finite_stops_the_robot_and_ends_the_run(bad: np.ndarray) -> None:
    rig = Rig()
    rig.answer = lambda turn, deadline: Answer(bad if turn >= 4 else np.array([STEP, 1.0]))
    with pytest.raises(NumericError, match="not finite"):
        rig.run(2.0)
    assert rig.kinds[0] == "action"
    assert rig.kinds[-1] == "stop"
    assert all(np.isfinite(command.values).all() for command in rig.commands)


def test_a_lapse_that_only_a_reset_ends_ends_the_run_at_rest() -> None:
    rig = Rig(line(watchdog=Lapse("hold", after_ms=550)))
    rig.camera_fault = lambda turn: CameraError("unplugged", "plug it in") if turn >= 5 else None
    with pytest.raises(LapsedError, match=r"plug it in; see to it, then start again, or declare watchdog\.recover"):
        rig.run(5.0)
    sound(rig)
    assert rig.ticks[-1].missed == "camera unplugged"
    assert rig.missed()["camera unplugged"] == 1
    assert issubclass(LapsedError, ResourceError)


def test_an_end_brings_the_robot_to_rest_inside_its_limits_first() -> None:
    rig = Rig(line(watchdog=Lapse("hold", recover=1)))
    rig.answer = lambda turn, deadline: Answer(np.array([0.09, 1.0]))
    threading.Timer(0.85, rig.loop.end, ["SIGTERM"]).start()
    rig.run(30.0)
    assert rig.loop.over == "SIGTERM"
    values = [float(command.values[0]) for command in rig.commands]
    assert "hold" in rig.kinds
    assert values[-1] == 0.0
    assert np.abs(np.diff([0.0, *values])).max() <= 0.02 + 1e-9
    assert np.abs(np.diff([0.0, 0.0, *values], 2)).max() <= 0.01 + 1e-9
    assert rig.loop.tally.lapses == {}
    assert rig.closed >= 3


def test_a_policy_that_never_comes_back_holds_up_nothing() -> None:
    rig, stuck = Rig(), threading.Event()

    def answer(turn: int, deadline: float) -> Answer:
        if turn >= 4:
            stuck.wait(20.0)
        return Answer(np.array([STEP, 1.0]))

    rig.answer = answer
    began = time.monotonic()
    rig.loop.run(1.5)
    assert not rig.loop.close()
    assert time.monotonic() - began < 5.0
    sound(rig)
    assert rig.missed()["policy busy"] >= 5
    assert rig.loop.tally.lapses == {"policy busy": 1}
    stuck.set()


def test_a_recording_s_end_is_the_end_of_the_run() -> None:
    rig = Rig()
    rig.camera_fault = lambda turn: CameraError("ended", "over after 4 pictures") if turn > 4 else None
    rig.run(30.0)
    sound(rig)
    assert rig.numbers == 4
    assert rig.loop.over == "over after 4 pictures"


def test_a_clock_that_is_set_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: 1e9 * (-1) ** next(jumps))
    monkeypatch.setattr(time, "time_ns", lambda: next(jumps))
    rig = Rig()
    rig.run(0.8)
    sound(rig)
    assert len(rig.ticks) == 8
    assert set(rig.missed()) <= {"late", "overrun", "policy busy"}


def test_nothing_between_camera_and_robot_asks_what_time_it_is() -> None:
    root = Path(edge_vla.robot.__file__).parent
    ours = [path for path in root.rglob("*.py") if not {"ros2", "rosbridge.py"} & set(path.relative_to(root).parts)]
    assert len(ours) > 20
    for path in ours:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time":
                assert node.attr in ("monotonic", "sleep"), path
            assert not (isinstance(node, ast.Name) and node.id == "datetime"), path


def test_before_the_first_motion_everything_is_there() -> None:
    rig = Rig()
    rig.loop.prepare(5.0)
    assert rig.commands == []
    rig.run(0.3)
    rig = Rig()
    rig.link_fault = lambda turn: LinkError("cut", "start the robot's program", taken=False)
    with pytest.raises(LinkError, match="start the robot's program"):
        rig.loop.prepare(0.2)
    rig.loop.close()
    rig = Rig()
    rig.camera_fault = lambda turn: CameraError("silent", "no picture came")
    with pytest.raises(CameraError):
        rig.loop.prepare(0.2)
    rig.loop.close()
    assert rig.commands == []


@pytest.mark.parametrize("missing", ["camera", "link"])
def test_an_end_before_the_first_motion_does_not_wait_for_what_is_missing(missing: str) -> None:
    rig = Rig()
    if missing == "camera":
        rig.camera_fault = lambda turn: CameraError("silent", "no picture came")
    else:
        rig.link_fault = lambda turn: LinkError("cut", "start the robot's program", taken=False)
    ender = threading.Timer(0.2, rig.loop.end, ["SIGINT"])
    ender.start()
    began = time.monotonic()
    rig.loop.prepare(20.0)
    rig.run(1.0)
    assert time.monotonic() - began < 10.0
    assert (rig.commands, rig.loop.tally.ticks, rig.loop.over) == ([], 0, "SIGINT")
    ender.join()


def test_an_answer_that_nobody_waits_for_any_more_is_thrown_away() -> None:
    rig, go = Rig(), threading.Event()
    rig.loop.close()

    class Slow:
        def act(self, picture: Picture, deadline: float) -> Answer:
            go.wait(10.0)
            return Answer(np.array([float(picture.number)]))

        def reset(self) -> None: ...

        def close(self) -> None: ...

    asker = Asker(Slow())
    pictures = [Picture(np.zeros((1, 1, 3), np.uint8), 0.0, i) for i in range(3)]
    assert asker.ask(pictures[1], 0.0)
    assert asker.answer(time.monotonic() + 0.05, lambda: False) is None
    assert not asker.ask(pictures[2], 0.0)
    go.set()
    while asker.busy:
        time.sleep(0.01)
    assert asker.ask(pictures[2], 0.0)
    found = asker.answer(time.monotonic() + 10.0, lambda: False)
    assert found is not None
    assert found.values.tolist() == [2.0]
    assert asker.close()


def test_percentiles_are_those_of_nearest_rank() -> None:
    assert Percentiles.of([]) == Percentiles(0, None, None, None)
    assert Percentiles.of(float(i) for i in range(1, 201)) == Percentiles(200, 100.0, 198.0, 200.0)


def test_a_tally_counts_each_turn_once() -> None:
    tally = Tally()
    tally.add(Tick(0, 0.0, missed="late"))
    tally.add(Tick(1, 0.2, action_ms=5.0, causes=(("step", "jerk"), ())))
    tally.add(Tick(2, 0.4, action_ms=7.0, causes=((), ())))
    summary = tally.summary(0.6)
    assert (summary.ticks, summary.acted, summary.missed) == (3, 2, {"late": 1})
    assert (summary.clamped, summary.clamps) == (1, {"0 step": 1, "0 jerk": 1})
    assert summary.action_ms == Percentiles(2, 5.0, 7.0, 7.0)
    assert tally.recent_rate(0.5) == pytest.approx(4.0)
