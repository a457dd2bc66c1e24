"""The robot's side of `edge-vla serve`: an action that is fresh and of this robot, or an error; never anything else.

    from edge_vla.serve.client import Robot

    with Robot("ws://192.168.1.20:8000", robot="arm-1", watchdog_ms=300, on_hold=arm.stop) as policy:
        while True:
            arm.move(policy.act(camera.read(), "put the spoon on the towel", deadline_ms=150).values)

Needs numpy, msgpack and websockets; neither torch nor the policy.
"""

from edge_vla.serve.client.asynchronous import AsyncRobot
from edge_vla.serve.client.errors import (
    ClientError,
    DeadlineError,
    DisconnectedError,
    ProtocolError,
    RefusedError,
    StaleError,
)
from edge_vla.serve.client.synchronous import Robot
from edge_vla.serve.client.watchdog import Watchdog
from edge_vla.serve.client.wire import Action, Hello

__all__ = [
    "Action",
    "AsyncRobot",
    "ClientError",
    "DeadlineError",
    "DisconnectedError",
    "Hello",
    "ProtocolError",
    "RefusedError",
    "Robot",
    "StaleError",
    "Watchdog",
]
