"""Links to a robot, by the address that `--to` gives. Each has the face `edge_vla.robot.faces.ActionSink`."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from edge_vla.errors import UsageError
from edge_vla.robot.links.answered import AnsweredLink

EXPECTED = "expected tcp://HOST:PORT, tcp+json://HOST:PORT or serial:/dev/ttyUSB0?baud=115200"


def open_link(address: str, dims: int) -> AnsweredLink:
    """Starts to connect. UsageError for what is no address, BackendError where a package is missing."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")  # as a connection will: ValueError for what can be no name
    except ValueError as error:
        raise UsageError(f"--to {address}: {error}; {EXPECTED}") from error
    if parts.scheme in ("tcp", "tcp+json"):
        from edge_vla.robot.links.tcp import tcp_link

        if not host or not port or parts.path.strip("/") or parts.query:
            raise UsageError(f"--to {address}: {EXPECTED}")
        return tcp_link(host, port, dims, json=parts.scheme == "tcp+json")
    if parts.scheme == "serial" and parts.path:
        from edge_vla.robot.links.serial_port import BAUD, serial_link

        options = parse_qs(parts.query, keep_blank_values=True)
        baud = options.pop("baud", [str(BAUD)])[-1]
        if options or not (baud.isascii() and baud.isdigit()) or not int(baud):
            raise UsageError(f"--to {address}: {EXPECTED}")
        return serial_link(parts.path, dims, int(baud))
    raise UsageError(f"--to {address}: {EXPECTED}")
