"""A robot on a serial port: `serial:/dev/ttyUSB0?baud=115200`. Needs pyserial, and reads and writes whole packets."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edge_vla.errors import BackendError
from edge_vla.robot.device import permission
from edge_vla.robot.faces import LinkError
from edge_vla.robot.links.answered import AnsweredLink
from edge_vla.robot.links.wire import Packets

if TYPE_CHECKING:
    from collections.abc import Callable

    from serial import Serial

BAUD: Final = 115200
WAIT_S: Final = 0.2
MESSAGE_BITS: Final = 1400  # a command of seven values and its beat, ten bits a byte
REMEDY: Final = "pip install 'edge-vla[act]'"


class SerialPort:
    """An open port, as pyserial has it, with its errors as OSErrors (which pyserial's are)."""

    def __init__(self, port: Serial) -> None:
        self._port = port

    def read(self) -> bytes:
        try:
            return bytes(self._port.read(max(1, self._port.in_waiting)))
        except TypeError as error:  # pyserial's, for a port that another thread closed
            raise OSError("closed") from error

    def write(self, data: bytes) -> None:
        self._port.write(data)

    def close(self) -> None:
        self._port.close()


def serial_link(path: str, dims: int, baud: int = BAUD) -> AnsweredLink:
    """BackendError without pyserial."""
    opened = opener()
    name = f"serial:{path}"

    def open_port() -> SerialPort:
        check(path)
        try:
            return SerialPort(opened(path, baud))
        except (OSError, ValueError) as error:
            raise LinkError("cut", f"{name}: {error}: check the cable and --to") from error

    return AnsweredLink(name, dims, open_port, Packets, resend_s=max(0.05, 4 * MESSAGE_BITS / baud))


def opener() -> Callable[[str, int], Serial]:
    """pyserial's port, never shared with another program. BackendError where it is not installed."""
    try:
        import serial
    except ImportError as error:
        raise BackendError(f"--to serial: needs pyserial: {REMEDY}") from error
    return lambda path, baud: serial.Serial(path, baud, timeout=WAIT_S, write_timeout=WAIT_S, exclusive=True)


def check(path: str) -> None:
    """LinkError, with what helps, for a port that is not there or that we may not open."""
    if not Path(path).exists():
        raise LinkError("cut", f"{path} is not there: plug it in, and look it up with: ls /dev/serial/by-id/")
    if not os.access(path, os.R_OK | os.W_OK):
        raise LinkError("cut", f"{path}: {os.strerror(errno.EACCES)} {permission(Path(path))}")
