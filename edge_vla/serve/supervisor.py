"""systemd's side of a service: READY, WATCHDOG and STOPPING over a datagram socket, and nothing where there is none."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class Supervisor:
    """`notify` never raises: a supervisor that does not listen must not stop a robot's server."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        limit = environment.get("WATCHDOG_USEC", "")
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_s = int(limit) / 1e6 if limit.isdecimal() and mine else None

    def notify(self, *lines: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as datagrams:
                datagrams.sendto("\n".join(lines).encode(), address)
        except OSError:
            pass
