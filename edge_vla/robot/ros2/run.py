"""A process with the node in it: signals bring the robot to rest first, and the exit code says how it ended.

Imports rclpy, with what to do where it is not there.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Final

from edge_vla.errors import BackendError

if TYPE_CHECKING:
    from edge_vla.robot.ros2.node import OpenSource

THREADS: Final = 3  # lifecycle's services, images, the rest
MISSING: Final = (
    "rclpy cannot be imported ({}): source /opt/ros/$ROS_DISTRO/setup.bash in this shell, with edge-vla in the same "
    "Python (docs/ros2.md); without ROS on this machine use rosbridge"
)


def run(open_source: OpenSource, arguments: Sequence[str]) -> int:
    """Spin until a signal, or until the node is finalised and need not stay. The exit code is the error's.

    `arguments`: ROS's own, from `--ros-args` on. BackendError without rclpy.
    """
    try:
        import rclpy
        from rclpy.executors import MultiThreadedExecutor
        from rclpy.signals import SignalHandlerOptions

        from edge_vla.robot.ros2.node import PolicyNode
    except ImportError as error:
        raise BackendError(MISSING.format(error)) from error
    # rclpy's own handlers would end the context, and with it the publishers, before the robot rests.
    rclpy.init(args=list(arguments), signal_handler_options=SignalHandlerOptions.NO)
    over = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        over.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    node = PolicyNode(open_source)
    executor = MultiThreadedExecutor(THREADS)
    executor.add_node(node)
    if node.parameters().autostart:
        node.start_by_itself(over.set)
    try:
        while not over.is_set() and not node.ended:
            executor.spin_once(timeout_sec=0.1)
    finally:
        node.end()
        executor.shutdown(1.0)
        node.destroy_node()
        rclpy.try_shutdown()
    return 0 if node.error is None else node.error.exit_code
