"""The demo policy behind two real servers, for clients of other projects: one open, one that asks for a token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import edge_vla
from benchmarks.serve.server import Server, demo_artifact, free_port, serving
from edge_vla.demo import statistics_key
from tests.clients.picture import INSTRUCTION, picture

TOKEN: Final = "0123456789abcdef-secret"
WITH_TOKEN: Final = ("openpi", "gr00t")  # the clients that can send one


@dataclass(frozen=True)
class Servers:
    """Both, and the action that either must give for the picture."""

    open: Server
    guarded: Server
    zmq_port: int
    action: list[float]

    def settings(self, client: str) -> dict[str, Any]:
        """What the client's script reads."""
        guarded = client.startswith(WITH_TOKEN)
        port = (self.guarded if guarded else self.open).port
        return {
            "host": "127.0.0.1",
            "port": port,
            "http": f"http://127.0.0.1:{port}",
            "ws": f"ws://127.0.0.1:{port}",
            "token": TOKEN if guarded else None,
            "zmq_port": self.zmq_port,
            "action": self.action,
            "unnorm_key": statistics_key(1),
        }


@contextmanager
def serving_demo(scratch: Path) -> Iterator[Servers]:
    artifact = demo_artifact(scratch / "artifact")
    action = edge_vla.load(artifact).act(picture(), INSTRUCTION).values.tolist()
    token, zmq_port = scratch / "token", free_port()
    token.write_text(TOKEN, encoding="utf-8")
    zmq = ("--token-file", str(token), "--zmq", f"tcp://127.0.0.1:{zmq_port}")
    with serving(artifact) as unguarded, serving(artifact, *zmq) as guarded:
        yield Servers(unguarded, guarded, zmq_port, action)
