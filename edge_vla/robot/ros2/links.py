"""ROS topics as camera and robot of `edge-vla act`, over DDS. Imports rclpy, so it is imported only when chosen.

The camera and the robot of one process share a node.
"""

from __future__ import annotations

import threading
from typing import Any, Final

from edge_vla.errors import BackendError
from edge_vla.robot.faces import CameraError, Command, LinkError, Picture
from edge_vla.robot.ros2 import pictures
from edge_vla.robot.ros2.ends import Address, MessageCamera, Outgoing
from edge_vla.robot.ros2.forms import Role
from edge_vla.robot.ros2.qos import Qos
from edge_vla.robot.ros2.run import MISSING
from edge_vla.robot.ros2.typed import build, message_class
from edge_vla.robot.units import Declaration

try:
    import rclpy
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    from edge_vla.robot.ros2.topics import Publisher, Topic, profile
except ImportError as missing:
    raise BackendError(MISSING.format(missing)) from missing

NODE: Final = "edge_vla_act"
STEP_S: Final = 0.05


class Process:
    """This process's node, spun by a thread of its own while anybody uses it."""

    _lock = threading.Lock()
    _shared: Process | None = None

    def __init__(self) -> None:
        self._ours = not rclpy.ok()
        if self._ours:
            rclpy.init(signal_handler_options=SignalHandlerOptions.NO)  # a signal brings the robot to rest first
        self.node = rclpy.create_node(NODE)
        self._users, self._over = 0, threading.Event()
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, name="ros", daemon=True)
        self._thread.start()

    @classmethod
    def take(cls) -> Process:
        with cls._lock:
            if cls._shared is None:
                cls._shared = Process()
            cls._shared._users += 1
            return cls._shared

    def give_back(self) -> None:
        with Process._lock:
            self._users -= 1
            if self._users:
                return
            Process._shared = None
        self._over.set()
        self._thread.join(2.0)
        self._executor.shutdown(1.0)
        self.node.destroy_node()
        if self._ours:
            rclpy.try_shutdown()

    def ros_now(self) -> int:
        return int(self.node.get_clock().now().nanoseconds)

    def _spin(self) -> None:
        while not self._over.is_set():
            try:
                self._executor.spin_once(timeout_sec=STEP_S)
            except ExternalShutdownException:
                return


class RosCamera(MessageCamera):
    """`ros2:/camera/image_raw`. Says who publishes what does not fit where no picture comes."""

    def __init__(self, address: Address) -> None:
        qos = Qos.parse(address.options.get("qos", "best_effort"), "qos")
        kind = message_class(pictures.IMAGE_TYPES["compressed" if address.compressed else "raw"])
        self._process = Process.take()
        super().__init__(address, self._process.ros_now)
        self._topic = Topic(address.topic, "qos", qos, "subscription")
        heard = self._on_compressed if address.compressed else self._on_raw
        self._subscription = self._process.node.create_subscription(kind, address.topic, heard, profile(qos))
        self._closed = False

    def newest(self, after: int, until: float) -> Picture:
        try:
            return super().newest(after, until)
        except CameraError as error:
            if error.fault != "silent" or self._closed:
                raise
            raise CameraError("silent", self._why() or str(error)) from error

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._process.node.destroy_subscription(self._subscription)
            self._process.give_back()

    def _why(self) -> str:
        if not self._topic.others(self._process.node):
            return f"{self.name}: nobody publishes it: ros2 topic list --show-types"
        return self._topic.mismatch(self._process.node)

    def _on_raw(self, message: Any) -> None:
        self.heard(*pictures.raw(message))

    def _on_compressed(self, message: Any) -> None:
        origin, _ = pictures.compressed(message)
        self.heard(origin, bytes(message.data))


class RosSink:
    """`ros2:/arm/action`: an `ActionSink`. A command is taken when the middleware has it and somebody subscribes.

    DDS gathers acknowledgements for seconds, so nothing waits for them, and a receiver that was killed is missed only
    when its lease ends: the robot's controller needs a timeout of its own.
    """

    def __init__(self, address: Address, robot: Declaration) -> None:
        form = address.form(robot)
        qos = Qos.parse(address.options.get("qos", "reliable, depth=10"), "qos")
        self.name = address.text
        kinds = [message_class(channel.type) for channel in form.channels]
        self._process = Process.take()
        self._outgoing = Outgoing(form, self._process.ros_now)
        self._topic = Topic(address.topic, "qos", qos, "publisher")
        self._publishers: dict[Role, Publisher] = {
            channel.role: self._process.node.create_publisher(kind, address.topic_of(channel), profile(qos))
            for kind, channel in zip(kinds, form.channels, strict=True)
        }
        self._closed = False

    def ready(self) -> None:
        if not self._publishers["action"].get_subscription_count():
            node = self._process.node
            why = self._topic.mismatch(node) or f"nobody subscribes to {self._topic.name}: ros2 topic info --verbose"
            raise LinkError("cut", f"{self.name}: {why}", taken=False)

    def send(self, command: Command) -> None:
        self.ready()
        for channel, message in self._outgoing.messages(command):
            self._publishers[channel.role].publish(build(channel.type, message))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for publisher in self._publishers.values():
                self._process.node.destroy_publisher(publisher)
            self._process.give_back()
