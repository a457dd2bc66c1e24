"""The age of an image by two clocks, and a clock that jumps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_vla.robot.ros2.freshness import Age, AgeRule, ClockWatch

RULE = AgeRule(0.4)
NOW_NS, NOW = 1_700_000_000_000_000_000, 1000.0


def age(stamp_s_ago: float, received_s_ago: float, rule: AgeRule = RULE) -> Age:
    return rule.age(NOW_NS - round(1e9 * stamp_s_ago), NOW_NS, NOW - received_s_ago, NOW)


@given(st.floats(0, 0.399), st.floats(0, 0.399))
def test_the_older_of_both_counts(by_stamp: float, by_receipt: float) -> None:
    found = age(by_stamp, by_receipt)
    assert found.stale == ""
    assert found.seconds == pytest.approx(max(by_stamp, by_receipt), abs=1e-6)


@given(st.floats(0.401, 3000), st.floats(0, 0.399))
def test_either_alone_makes_it_stale(old: float, young: float) -> None:
    assert "by its stamp, at most 400 ms" in age(old, young).stale
    assert "since it came, at most 400 ms" in age(young, old).stale


def test_a_stamp_from_the_future_names_the_clocks() -> None:
    assert "3.200 s ahead of ROS time" in age(-3.2, 0.0).stale
    assert "chronyc tracking" in age(-3.2, 0.0).stale
    assert age(-0.04, 0.0) == Age(0.0)  # two machines' clocks


def test_a_stamp_of_another_epoch_names_the_clocks_too() -> None:
    simulated_camera = RULE.age(12_000_000_000, NOW_NS, NOW, NOW)
    assert "use_sim_time: true for a simulated camera" in simulated_camera.stale


def test_an_image_without_a_stamp_is_refused_unless_allowed() -> None:
    assert "accept_unstamped" in RULE.age(0, NOW_NS, NOW, NOW).stale
    allowed = AgeRule(0.4, unstamped=True)
    assert allowed.age(0, NOW_NS, NOW - 0.3, NOW) == Age(pytest.approx(0.3))  # type: ignore[arg-type]
    assert "since it came" in allowed.age(0, NOW_NS, NOW - 0.5, NOW).stale


def test_simulated_time_that_has_not_begun_is_named() -> None:
    assert "no /clock has come" in AgeRule(0.4, simulated=True).age(5, 0, NOW, NOW).stale


class Clocks:
    """Both, as they are read: the system's, and a monotonic one that `aside` lets pass between two readings."""

    def __init__(self) -> None:
        self.ros_s, self.monotonic_s, self.aside = 1_700_000_000.0, 1000.0, 0.0

    def look(self, watch: ClockWatch, ros_s: float, seconds: float) -> str:
        self.ros_s, self.monotonic_s = self.ros_s + ros_s, self.monotonic_s + seconds
        return watch.look(lambda: round(1e9 * self.ros_s), self._monotonic)

    def _monotonic(self) -> float:
        now, self.monotonic_s = self.monotonic_s, self.monotonic_s + self.aside
        return now


def test_a_set_clock_is_noticed_and_a_slow_look_is_not() -> None:
    clocks, watch = Clocks(), ClockWatch()
    assert clocks.look(watch, 0.0, 0.0) == ""
    assert clocks.look(watch, 7.0, 7.0) == ""
    assert "jumped forward by 2.000 s" in clocks.look(watch, 3.0, 1.0)
    assert clocks.look(watch, 1.0, 1.0) == ""
    assert "jumped back by 5.000 s (somebody set the system's clock)" in clocks.look(watch, -4.0, 1.0)


@given(st.floats(0.021, 5.0))
def test_being_put_aside_between_two_readings_is_no_jump(aside: float) -> None:
    clocks, watch = Clocks(), ClockWatch()
    assert clocks.look(watch, 0.0, 0.0) == ""
    clocks.aside = aside
    assert clocks.look(watch, 1.0, 1.0) == ""
    clocks.aside, clocks.monotonic_s = 0.0, 1001.0
    assert clocks.look(watch, 1.0, 1.0) == ""
