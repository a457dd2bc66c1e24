"""Quality of service: what a parameter may say, and a mismatch named with what to set."""

from __future__ import annotations

import itertools

import pytest

from edge_vla.errors import UsageError
from edge_vla.robot.ros2.qos import End, Endpoint, Qos, broken, mismatch

RELIABILITIES, DURABILITIES = ("reliable", "best_effort"), ("volatile", "transient_local")
KINDS = list(itertools.product(RELIABILITIES, DURABILITIES))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("best_effort", Qos("best_effort")),
        ("reliable, depth=10", Qos("reliable", depth=10)),
        (" reliable ,transient_local, depth=1 ", Qos("reliable", "transient_local")),
    ],
)
def test_a_parameter_says_it(text: str, expected: Qos) -> None:
    assert Qos.parse(text, "image_qos") == expected
    assert Qos.parse(str(expected), "image_qos") == expected


@pytest.mark.parametrize("text", ["", "depth=3", "reliable, depth=0", "reliable, depth=-1", "sensor_data", "reliable;"])
def test_what_it_cannot_say_names_the_parameter(text: str) -> None:
    with pytest.raises(UsageError, match=r"action_qos is"):
        Qos.parse(text, "action_qos")


@pytest.mark.parametrize(("offered", "asked"), list(itertools.product(KINDS, KINDS)))
def test_what_fits_is_dds_s_own_table(offered: tuple[str, str], asked: tuple[str, str]) -> None:
    """A publisher's offer must be at least as strong: best effort < reliable, volatile < transient local."""
    stronger = all(
        order.index(give) >= order.index(want)
        for order, give, want in zip((RELIABILITIES[::-1], DURABILITIES), offered, asked, strict=True)
    )
    ours: End
    for ours, mine, theirs in (("publisher", offered, asked), ("subscription", asked, offered)):
        qos = Qos.parse(", ".join(mine), "x")
        assert (broken(qos, ours, Endpoint("/n", *theirs)) == "") is stronger


def test_a_mismatch_names_both_sides_and_the_remedy() -> None:
    driver = Endpoint("/camera/driver", "best_effort", "volatile")
    other = Endpoint("/bag", "reliable", "volatile")
    line = mismatch("/image", "image_qos", Qos("reliable"), "subscription", "RELIABILITY", [driver, other])
    assert "no data flows on /image: reliability does not fit, this node has reliable" in line
    assert "/camera/driver (best_effort) offers that" in line
    assert "/bag" not in line
    assert 'set image_qos: "best_effort, depth=1"' in line


@pytest.mark.parametrize(
    ("end", "ours", "theirs", "policy", "remedy"),
    [
        (
            "subscription",
            "reliable, transient_local",
            ("reliable", "volatile"),
            "DURABILITY",
            'set p: "reliable, depth=1"',
        ),
        ("publisher", "best_effort", ("reliable", "volatile"), "RELIABILITY", 'set p: "reliable, depth=1"'),
        ("publisher", "reliable", ("reliable", "transient_local"), "DURABILITY", 'p: "reliable, transient_local'),
        ("publisher", "reliable", ("reliable", "volatile"), "DEADLINE", "ros2 topic info --verbose"),
    ],
)
def test_each_mismatch_has_its_remedy(end: End, ours: str, theirs: tuple[str, str], policy: str, remedy: str) -> None:
    line = mismatch("/t", "p", Qos.parse(ours, "p"), end, policy, [Endpoint("/n", *theirs)])
    assert remedy in line
    wanted = Qos.parse(remedy.split('"')[1], "p") if '"' in remedy and remedy.count('"') == 2 else None
    if wanted is not None:  # following it ends the mismatch
        assert not broken(wanted, end, Endpoint("/n", *theirs))


def test_an_endpoint_that_the_graph_does_not_know_yet_is_said_so() -> None:
    line = mismatch("/t", "p", Qos("reliable"), "subscription", "RMW_QOS_POLICY_RELIABILITY", [])
    assert "reliability does not fit" in line
    assert "a node not yet in the graph" in line
