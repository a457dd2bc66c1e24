"""rosbridge servers for tests: rosbridge_suite's own, from a checkout of it, and a small one that speaks its protocol.

    python -m tests.robot.ros2.bridge CHECKOUT PORT

The suite's count of clients is left out, because its two message types would have to be built.
"""

from __future__ import annotations

import importlib.util
import json
import runpy
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve


class SmallBridge:
    """`publish`, `subscribe`, `advertise` and their opposites, as rosbridge's protocol page has them; no ROS."""

    def __init__(self, port: int) -> None:
        self.heard: list[dict[str, Any]] = []
        self.mute = False  # whether what is published stays here
        self._subscribers: dict[str, list[ServerConnection]] = {}
        self._lock = threading.Lock()
        self._server: Server = serve(self._serve, "127.0.0.1", port, max_size=None)
        self.port: int = self._server.socket.getsockname()[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def subscribers(self, topic: str) -> int:
        with self._lock:
            return len(self._subscribers.get(topic, []))

    def publish(self, topic: str, message: object) -> None:
        """To whoever subscribed to the topic."""
        with self._lock:
            found = list(self._subscribers.get(topic, []))
        for connection in found:
            connection.send(json.dumps({"op": "publish", "topic": topic, "msg": message}))

    def close(self) -> None:
        """Cuts every connection."""
        with self._lock:
            found = [each for several in self._subscribers.values() for each in several]
            self._subscribers.clear()
        self._server.shutdown()
        for connection in found:
            connection.socket.close()

    def _serve(self, connection: ServerConnection) -> None:
        try:
            for text in connection:
                self._take(connection, json.loads(text))
        except (ConnectionClosed, OSError):
            pass
        finally:
            with self._lock:
                for several in self._subscribers.values():
                    if connection in several:
                        several.remove(connection)

    def _take(self, connection: ServerConnection, message: dict[str, Any]) -> None:
        with self._lock:
            several = self._subscribers.setdefault(message["topic"], [])
            if message["op"] == "subscribe":
                several.append(connection)
            elif message["op"] == "unsubscribe" and connection in several:
                several.remove(connection)
        if message["op"] == "publish":
            self.heard.append(message["msg"])
            if not self.mute:
                self.publish(message["topic"], message["msg"])


@contextmanager
def small_bridge(port: int = 0) -> Iterator[SmallBridge]:
    bridge = SmallBridge(port)
    try:
        yield bridge
    finally:
        bridge.close()


def run_suite(checkout: Path, port: int) -> None:
    """The suite's script, `rosbridge_websocket.py`, with its own library and websocket handler."""
    sys.path.insert(0, str(checkout / "rosbridge_library" / "src"))
    server = checkout / "rosbridge_server"
    spec = importlib.util.spec_from_file_location(
        "rosbridge_server.websocket_handler", server / "src" / "rosbridge_server" / "websocket_handler.py"
    )
    assert spec is not None
    assert spec.loader is not None
    handler = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(handler)
    package = types.ModuleType("rosbridge_server")
    package.__dict__.update(RosbridgeWebSocket=handler.RosbridgeWebSocket, ClientManager=lambda _: None)
    sys.modules["rosbridge_server"] = package
    sys.argv = ["rosbridge_websocket", "--port", str(port), "--address", "127.0.0.1"]
    runpy.run_path(str(server / "scripts" / "rosbridge_websocket.py"), run_name="__main__")


if __name__ == "__main__":
    run_suite(Path(sys.argv[1]), int(sys.argv[2]))
