"""What the node says of itself twice a second, as lines of diagnostics; and the same as JSON where that package is not.

Pure: everything is given. A warning says what to look at next.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from edge_vla.robot.gate import GateState
from edge_vla.robot.ros2.messages import Message, Status
from edge_vla.robot.ros2.pilot import PilotState

OK, WARN, ERROR = 0, 1, 2


@dataclass(frozen=True)
class Snapshot:
    """The node at one moment. `silent_s`: since the last frame came, None before the first."""

    node: str
    state: str
    source: str
    instruction: str
    failure: str
    image_topic: str
    silent_s: float | None
    slow_s: float  # without a frame for longer than this is worth a warning
    mismatches: Sequence[str]
    pilot: PilotState | None = None
    gate: GateState | None = None


def statuses(now: Snapshot) -> list[Status]:
    found = [_policy(now), _images(now)]
    return found if now.gate is None else [*found, _gate(now, now.gate)]


def as_text(lines: Sequence[Status]) -> Message:
    """A std_msgs/String with a JSON object: where diagnostic_msgs is not installed."""
    found = [{"name": s.name, "level": s.level, "message": s.message, "values": dict(s.values)} for s in lines]
    return {"data": json.dumps({"status": found}, ensure_ascii=False)}


def _policy(now: Snapshot) -> Status:
    values = {"lifecycle": now.state, "source": now.source, "instruction": now.instruction}
    if now.pilot is not None:
        values |= {
            "actions": str(now.pilot.actions),
            "policy ms": _number(now.pilot.policy_ms.p50),
            "policy p99 ms": _number(now.pilot.policy_ms.p99),
            "image age ms": _number(now.pilot.age_ms.p50),
        } | {f"skipped: {why}": str(count) for why, count in sorted(now.pilot.skipped.items())}
    if now.failure:
        return Status(f"{now.node}: policy", ERROR, now.failure, values)
    if now.pilot is not None and now.pilot.reason:
        return Status(f"{now.node}: policy", WARN, now.pilot.reason, values)
    return Status(f"{now.node}: policy", OK, now.state, values)


def _images(now: Snapshot) -> Status:
    frames = 0 if now.pilot is None else now.pilot.frames
    values = {"topic": now.image_topic, "frames": str(frames), "silent s": _number(now.silent_s)}
    name = f"{now.node}: topics"
    if now.mismatches:
        return Status(name, ERROR, " | ".join(now.mismatches), values)
    if now.pilot is not None and (now.silent_s is None or now.silent_s > now.slow_s):
        since = "yet" if now.silent_s is None else f"for {now.silent_s:.1f} s"
        return Status(name, WARN, f"no image on {now.image_topic} {since}: ros2 topic hz {now.image_topic}", values)
    return Status(name, OK, "images come" if frames else "", values)


def _gate(now: Snapshot, gate: GateState) -> Status:
    values = {
        "watch": gate.watch,
        "lapses": str(gate.lapses),
        "refused": str(gate.refused),
        "clamped": str(gate.counters.clamped),
        "stops": str(gate.counters.stops),
    }
    name = f"{now.node}: gate"
    if gate.latched:
        message = f"{gate.reason}; nothing passes: ros2 lifecycle set {now.node} deactivate, then activate"
        return Status(name, ERROR, message, values)
    return Status(name, WARN if gate.watch == "lapsed" else OK, gate.reason or gate.watch, values)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
