"""ROS topics as camera and robot of `edge-vla act`, over rosbridge's websocket: for a machine without ROS.

    ros2 launch rosbridge_server rosbridge_websocket_launch.xml            # on the robot
    edge-vla act … --camera rosbridge://ROBOT:9090/camera/compressed --to rosbridge://ROBOT:9090/arm/action

rosbridge acknowledges nothing, so the action's own topic is subscribed too: a command was taken when it came back. One
that could not be sent at once is never sent later. Imports roslibpy, so it is imported only when chosen.
"""

from __future__ import annotations

import base64
import binascii
import logging
import threading
import time
from types import SimpleNamespace
from typing import Any, Final

from edge_vla.errors import BackendError
from edge_vla.robot.faces import CameraError, Command, LinkError
from edge_vla.robot.ros2 import pictures
from edge_vla.robot.ros2.ends import Address, MessageCamera, Outgoing
from edge_vla.robot.ros2.messages import Message
from edge_vla.robot.units import Declaration

try:
    import roslibpy
except ImportError as missing:
    raise BackendError(
        f"a rosbridge:// address needs roslibpy ({missing}): pip install 'edge-vla[rosbridge]'"
    ) from missing

AGAIN_S: Final = 2  # between two attempts to connect, at most


class Bridge:
    """One connection to a rosbridge, which comes back by itself. Its event loop lives as long as the process."""

    _lock = threading.Lock()
    _open: Final[dict[tuple[str, int, bool], Bridge]] = {}

    def __init__(self, address: Address) -> None:
        logging.getLogger("twisted").setLevel(logging.CRITICAL)  # what failed is said once, in our words
        self.ros = roslibpy.Ros(address.host, address.port, is_secure=address.tls)
        self.ros.factory.set_max_delay(AGAIN_S)
        self.ros.factory.manager.run()
        self.ros.connect()

    @classmethod
    def to(cls, address: Address) -> Bridge:
        place = (address.host, address.port, address.tls)
        with cls._lock:
            if place not in cls._open:
                cls._open[place] = Bridge(address)
            return cls._open[place]

    @property
    def connected(self) -> bool:
        return bool(self.ros.is_connected)

    def topic(self, name: str, kind: str, **options: Any) -> Any:
        return roslibpy.Topic(self.ros, name, kind, **options)

    def send_now(self, topic: Any, message: Message, valid_until: float) -> bool:
        """Whether it went out; never later, when the connection has come back."""
        gone = False

        def send(connection: Any) -> None:
            nonlocal gone
            if time.monotonic() < valid_until:
                connection.send_ros_message({"op": "publish", "topic": topic.name, "msg": message})
                gone = True

        if self.connected:
            self.ros.factory.on_ready(send)
        return gone


class BridgeCamera(MessageCamera):
    """`rosbridge://HOST:9090/camera/compressed`. This machine's clock must agree with the camera's."""

    def __init__(self, address: Address) -> None:
        super().__init__(address, time.time_ns)
        kind = pictures.IMAGE_TYPES["compressed" if address.compressed else "raw"]
        self._compressed, self._bridge = address.compressed, Bridge.to(address)
        self._topic = self._bridge.topic(address.topic, kind, queue_length=1)
        self._topic.subscribe(self._on_message)
        self._bridge.ros.on("close", self._on_close)
        self._closed = False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._bridge.ros.off("close", self._on_close)
            self._topic.unsubscribe()

    def _on_close(self, connection: Any) -> None:  # noqa: ARG002
        self.fail(CameraError("unplugged", f"{self.name}: the connection to rosbridge broke"))

    def _on_message(self, message: Any) -> None:
        try:
            fields = _fields(message)
            fields.data = base64.b64decode(fields.data, validate=True)
            origin, read = pictures.compressed(fields) if self._compressed else pictures.raw(fields)
        except (AttributeError, TypeError, ValueError, binascii.Error) as error:
            self.fail(CameraError("unreadable", f"{self.name}: a message that is no image: {error!r}"))
            return
        self.heard(origin, fields.data if self._compressed else read)


class BridgeSink:
    """`rosbridge://HOST:9090/arm/action`: an `ActionSink`."""

    def __init__(self, address: Address, robot: Declaration) -> None:
        self.name = address.text
        self._outgoing = Outgoing(address.form(robot), time.time_ns)
        self._bridge = Bridge.to(address)
        self._topics = {
            channel.role: self._bridge.topic(address.topic_of(channel), channel.type)
            for channel in self._outgoing.form.channels
        }
        for topic in self._topics.values():
            topic.advertise()
        self._changed, self._back = threading.Condition(), ""
        kind = next(channel.type for channel in self._outgoing.form.channels if channel.role == "action")
        self._echo = self._bridge.topic(address.topic, kind, queue_length=1)
        self._echo.subscribe(self._on_echo)
        self._closed = False

    def ready(self) -> None:
        if not self._bridge.connected:
            raise LinkError("cut", f"{self.name}: no connection: is rosbridge_server running there?", taken=False)

    def send(self, command: Command) -> None:
        self.ready()
        mark = ""
        for channel, message in self._outgoing.messages(command):
            mark = _mark(message)
            if not self._bridge.send_now(self._topics[channel.role], message, command.valid_until):
                raise LinkError("cut", f"{self.name}: the connection broke before the command was sent", taken=False)
        with self._changed:
            while self._back != mark:
                left = command.valid_until - time.monotonic()
                if left <= 0:
                    raise LinkError("silent", f"{self.name}: a command did not come back while it was valid")
                self._changed.wait(left)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._echo.unsubscribe()
            for topic in self._topics.values():
                topic.unadvertise()

    def _on_echo(self, message: Any) -> None:
        with self._changed:
            self._back = _mark(message)
            self._changed.notify_all()


def _mark(message: Any) -> str:
    """What tells a command from others: the stamp in its header, or an array's first label; empty for neither."""
    if "header" in message:
        stamp = message["header"]["stamp"]
        return f"{stamp['sec']}.{stamp['nanosec']:09d}"
    layout = message.get("layout")
    return str(layout["dim"][0]["label"]) if layout else ""


def _fields(value: Any) -> Any:
    """A JSON object as what `pictures` reads: fields by name."""
    if isinstance(value, dict) or hasattr(value, "items"):
        return SimpleNamespace(**{str(name): _fields(each) for name, each in value.items()})
    return value
