"""Laws of who is served where: a robot stays, moves only when it must or is idle, and replicas stay even."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from edge_vla.serve.affinity import Places, share

ROBOTS = st.integers(0, 9).map("arm-{}".format)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), ROBOTS, st.booleans()),
        st.tuples(st.just("leave"), ROBOTS, st.none()),
        st.tuples(st.sampled_from(("up", "down")), st.integers(0, 3), st.none()),
    ),
    max_size=80,
)


def counts(places: Places) -> Counter[int | None]:
    return Counter(places.at(f"arm-{i}") for i in range(10) if places.at(f"arm-{i}") is not None)


def applied(places: Places, steps: list[tuple[str, str | int, bool | None]]) -> None:
    for what, who, busy in steps:
        if what == "ask":
            places.place(str(who), busy=bool(busy))
        elif what == "leave":
            places.leave(str(who))
        elif what == "up":
            places.raise_up(int(who))
        else:
            places.take_down(int(who))


@given(STEPS, ROBOTS, st.booleans())
def test_an_observation_goes_to_a_replica_that_is_up(
    steps: list[tuple[str, str | int, bool | None]], robot: str, busy: bool
) -> None:
    places = Places(16)
    applied(places, steps)
    at = places.place(robot, busy=busy)
    assert (at is None) == (not places.up)
    assert at is None or at in places.up
    assert places.at(robot) == at


@given(STEPS, ROBOTS)
def test_a_busy_robot_stays_while_its_replica_is_up(
    steps: list[tuple[str, str | int, bool | None]], robot: str
) -> None:
    places = Places(16)
    places.raise_up(0)
    before = places.place(robot, busy=False)
    mine = [step for step in steps if not (step[0] == "ask" and step[1] == robot and not step[2]) and step[1] != robot]
    applied(places, [step for step in mine if step[:2] != ("down", before)])
    assert places.place(robot, busy=True) == before


@given(STEPS)
def test_once_all_have_asked_replicas_are_even_and_nobody_moves_again(
    steps: list[tuple[str, str | int, bool | None]],
) -> None:
    places = Places(16)
    applied(places, steps)
    places.raise_up(1)
    robots = [f"arm-{i}" for i in range(10)]
    for _ in range(2):
        for robot in robots:
            places.place(robot, busy=False)
    found = counts(places)
    assert max(found[replica] for replica in places.up) - min(found[replica] for replica in places.up) <= 1
    settled = [places.at(robot) for robot in robots]
    assert [places.place(robot, busy=False) for robot in robots] == settled


@given(STEPS)
def test_robots_are_counted_where_they_are_and_memory_is_bounded(
    steps: list[tuple[str, str | int, bool | None]],
) -> None:
    places = Places(4)
    applied(places, steps)
    assert places.known == sum(counts(places).values()) <= 4
    assert set(counts(places)) <= places.up


def test_robots_of_a_replica_that_is_gone_have_no_place() -> None:
    places = Places(8)
    places.raise_up(0)
    places.raise_up(1)
    at = {robot: places.place(robot, busy=False) for robot in ("a", "b", "c", "d")}
    assert Counter(at.values()) == {0: 2, 1: 2}
    places.take_down(0)
    assert [places.at(robot) for robot in at] == [None if replica == 0 else 1 for replica in at.values()]
    assert {places.place(robot, busy=True) for robot in at} == {1}


@given(st.lists(st.integers(0, 64), max_size=5), st.integers(1, 12))
def test_each_replica_gets_as_many_cpus_as_fit(cpus: list[int], replicas: int) -> None:
    each = share(cpus, replicas)
    assert each == 0 or sum(n // each for n in cpus) >= replicas
    assert sum(n // (each + 1) for n in cpus) < replicas, "one more would fit as well"
