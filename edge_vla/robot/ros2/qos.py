"""Quality of service in words: what a parameter says, and what to do where publisher and subscriber do not fit.

    "best_effort, depth=1"      "reliable, transient_local, depth=1"

Knows no rclpy; `node.py` makes a profile of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from edge_vla.errors import UsageError

Reliability = Literal["reliable", "best_effort"]
Durability = Literal["volatile", "transient_local"]
End = Literal["subscription", "publisher"]
MOST: Final = 1000  # messages kept


@dataclass(frozen=True)
class Qos:
    """What is kept last, `depth` messages of it. An image's depth is 1: the newest wins."""

    reliability: Reliability
    durability: Durability = "volatile"
    depth: int = 1

    @staticmethod
    def parse(text: str, parameter: str) -> Qos:
        """UsageError names the parameter."""
        reliability: Reliability | None = None
        durability, depth = "volatile", 1
        for word in (part.strip() for part in text.split(",")):
            if word in get_args(Reliability):
                reliability = "reliable" if word == "reliable" else "best_effort"
            elif word in get_args(Durability):
                durability = word
            elif word.startswith("depth=") and word[6:].isdecimal() and 1 <= int(word[6:]) <= MOST:
                depth = int(word[6:])
            else:
                raise UsageError(
                    f"{parameter} is {text!r}, expected reliable or best_effort, then if need be transient_local and "
                    f'depth=1..{MOST}: for example "best_effort, depth=1"'
                )
        if reliability is None:
            raise UsageError(f"{parameter} is {text!r}: it must say reliable or best_effort")
        return Qos(reliability, "transient_local" if durability == "transient_local" else "volatile", depth)

    def __str__(self) -> str:
        return f"{self.reliability}, {self.durability}, depth={self.depth}"


@dataclass(frozen=True)
class Endpoint:
    """Somebody else's side of a topic, as the graph shows it."""

    node: str
    reliability: str
    durability: str


def broken(ours: Qos, end: End, theirs: Endpoint) -> str:
    """The policy that keeps data from flowing, or nothing: a publisher must offer at least what is asked for."""
    offered, asked = (theirs, ours) if end == "subscription" else (ours, theirs)
    if asked.reliability == "reliable" and offered.reliability == "best_effort":
        return "RELIABILITY"
    if asked.durability == "transient_local" and offered.durability == "volatile":
        return "DURABILITY"
    return ""


def mismatch(topic: str, parameter: str, ours: Qos, end: End, policy: str, others: Sequence[Endpoint]) -> str:
    """One line: no data flows on `topic`, because of which policy, between whom, and what to set.

    `policy` is DDS's name for what did not fit, such as RELIABILITY; `others` are all endpoints of the other side.
    """
    culprits = [each for each in others if broken(ours, end, each)]
    kind = policy.lower().removeprefix("rmw_qos_policy_")
    word = "durability" if kind == "durability" else "reliability"
    names = ", ".join(sorted(f"{each.node} ({_of(each, word)})" for each in culprits)) or "a node not yet in the graph"
    verb = "offers" if end == "subscription" else "asks for"
    head = f"no data flows on {topic}: {kind} does not fit, this node has {_of(ours, word)} and {names} {verb} that"
    return f"{head}; {_remedy(parameter, ours, end, kind)}"


def _of(end: Qos | Endpoint, word: str) -> str:
    return end.durability if word == "durability" else end.reliability


def _remedy(parameter: str, ours: Qos, end: End, kind: str) -> str:
    if end == "subscription" and kind == "reliability":
        return f'set {parameter}: "best_effort, depth={ours.depth}", which takes both, or make the publisher reliable'
    if end == "subscription" and kind == "durability":
        return (
            f'set {parameter}: "{ours.reliability}, depth={ours.depth}" and publish after this node is configured, '
            "or make the publisher transient_local (ros2 topic pub --qos-durability transient_local)"
        )
    if kind == "reliability":
        return f'set {parameter}: "reliable, depth={ours.depth}", which serves both, or make the receiver best_effort'
    if kind == "durability":
        return (
            f'set {parameter}: "{ours.reliability}, transient_local, depth={ours.depth}", or make the receiver volatile'
        )
    return "compare both sides with ros2 topic info --verbose, and set them alike"
