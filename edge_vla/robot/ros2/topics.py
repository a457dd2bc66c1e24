"""A node's topics with their quality of service: profiles, and a mismatch named as soon as DDS notices it.

Imports rclpy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from rclpy.exceptions import InvalidHandle
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSProfile,
    ReliabilityPolicy,
    qos_policy_name_from_kind,
)

from edge_vla.robot.ros2.qos import End, Endpoint, Qos, broken, mismatch

try:
    from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import PublisherEventCallbacks, SubscriptionEventCallbacks


class Publisher(Protocol):
    """rclpy's own, which has no types where it is not installed."""

    def publish(self, msg: object) -> None: ...

    def get_subscription_count(self) -> int: ...


@dataclass(frozen=True)
class Topic:
    """One of a node's own, `name` as ROS resolves it; `parameter` sets its quality of service."""

    name: str
    parameter: str
    qos: Qos
    end: End

    def others(self, node: Any) -> list[Endpoint]:
        """The endpoints of the other side, as the graph shows them now."""
        ask = node.get_publishers_info_by_topic if self.end == "subscription" else node.get_subscriptions_info_by_topic
        return [
            Endpoint(
                f"{each.node_namespace.rstrip('/')}/{each.node_name}",
                each.qos_profile.reliability.name.lower(),
                each.qos_profile.durability.name.lower(),
            )
            for each in ask(self.name)
        ]

    def mismatch(self, node: Any) -> str:
        """The mismatch that lasts, or nothing."""
        others = self.others(node)
        policy = next(filter(None, (broken(self.qos, self.end, each) for each in others)), "")
        return mismatch(self.name, self.parameter, self.qos, self.end, policy, others) if policy else ""

    def events(self, node: Any, on_mismatch: Callable[[str], None]) -> Any:
        """The event callbacks of this topic's endpoint."""

        def incompatible(info: Any) -> None:
            policy = qos_policy_name_from_kind(info.last_policy_kind)
            on_mismatch(mismatch(self.name, self.parameter, self.qos, self.end, policy, self.others(node)))

        kind = SubscriptionEventCallbacks if self.end == "subscription" else PublisherEventCallbacks
        return kind(incompatible_qos=incompatible)


def outlived(endpoint: Any) -> Any:
    """The same publisher or subscription; an event whose turn comes after it was destroyed is none.

    rclpy raises in the executor for one, which ends the process and leaves the callback group taken.
    """
    for handler in endpoint.event_handlers:
        handler.take_data = partial(_taken, handler.take_data)
    return endpoint


def _taken(take: Callable[[], object]) -> object:
    try:
        return take()
    except InvalidHandle:
        return None  # a handler is given None where nothing came


def profile(qos: Qos) -> Any:
    """rclpy's own form of it."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=qos.depth,
        reliability=ReliabilityPolicy[qos.reliability.upper()],
        durability=DurabilityPolicy[qos.durability.upper()],
    )
