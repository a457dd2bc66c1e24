"""`--to stdout`: a JSON object a line for each command, for a program behind a pipe, or to look at."""

from __future__ import annotations

import json
import time
from typing import Protocol

from edge_vla.errors import ResourceError
from edge_vla.robot.faces import Command, LinkError


class Writable(Protocol):
    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...


class LineSink:
    """An `ActionSink` that cannot know whether anybody reads; a pipe that is closed counts as cut."""

    def __init__(self, stream: Writable, name: str = "stdout") -> None:
        self.name, self._stream, self._broken = name, stream, False

    def ready(self) -> None:
        """ResourceError where nobody reads it any more: a pipe is not opened again."""
        if self._broken:
            raise ResourceError(f"{self.name}: nobody reads it any more: start both ends of the pipe again")

    def send(self, command: Command) -> None:
        """`valid_ms` and `age_ms` count from now."""
        if self._broken:
            raise LinkError("cut", f"{self.name}: nobody reads it any more", taken=False)
        now = time.monotonic()
        line = {
            "kind": command.kind,
            "number": command.number,
            "values": command.values.tolist(),
            "age_ms": None if command.taken is None else round(1e3 * (now - command.taken), 3),
            "valid_ms": round(1e3 * (command.valid_until - now), 3),
        }
        try:
            self._stream.write(json.dumps(line) + "\n")
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._broken = True
            raise LinkError("cut", f"{self.name}: {error}") from error

    def close(self) -> None:
        self._broken = True
