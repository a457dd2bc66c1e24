"""What robots were shown and did, as a folder of frames that calibration and bench read. Bounded, and never in the way.

A thread writes; where it cannot keep up, observations are left out and counted. A line is added to the index when its
picture is whole. Knows frames, and no wire.
"""

from __future__ import annotations

import json
import logging
import queue
import re
import secrets
import threading
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from PIL import Image

from edge_vla.data.frames import INDEX
from edge_vla.errors import ResourceError
from edge_vla.serve.messages import Code, Observation, Reply

log = logging.getLogger("edge_vla.serve")
WAITING: Final = 16  # observations that wait to be written
CLOSE_S: Final = 2.0
ROBOTS: Final = 1024  # whose episodes are counted on


@dataclass(frozen=True)
class RecordOptions:
    """Where to, at most how many bytes in all, and whether instructions become marks that only tell them apart."""

    directory: Path
    most_bytes: int = 10 * 10**9
    redact: bool = False


class Recorder:
    """A `Watcher` of the host's. ResourceError where the folder cannot be written."""

    def __init__(self, options: RecordOptions) -> None:
        self.options, self.left_out, self.written = options, 0, 0
        self._run, self._count = f"{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(2)}", 0
        self._episodes = 0  # begun, of all robots
        self._steps: dict[str, tuple[int, int]] = {}  # a robot's episode and its next step
        try:
            options.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _whole_lines(options.directory / INDEX)
            self._bytes = sum(path.stat().st_size for path in options.directory.iterdir())
        except OSError as error:
            raise ResourceError(f"--record {options.directory} cannot be written: {error.strerror}") from error
        self._queue: queue.Queue[tuple[Observation, Reply, str, int] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._write_all, name="record", daemon=True)
        self._thread.start()

    def answered(self, observation: Observation, reply: Reply) -> None:
        robot = observation.robot
        if robot not in self._steps and len(self._steps) >= ROBOTS:
            self._steps.pop(next(iter(self._steps)))
        if robot not in self._steps:
            self._steps[robot] = self._episodes, 0
            self._episodes += 1
        number, step = self._steps[robot]
        self._steps[robot] = number, step + 1
        episode = f"{_plain(robot)}-{self._run}-{number}"
        try:
            self._queue.put_nowait((observation, reply, episode, step))
        except queue.Full:
            self.left_out += 1

    def refused(self, robot: str, code: Code) -> None:
        """Nothing was done: nothing is recorded."""

    def reset(self, robot: str) -> None:
        """The robot's next frame begins an episode."""
        self._steps.pop(robot, None)

    def left(self, robot: str) -> None:
        self.reset(robot)

    def close(self) -> None:
        """Write what waits, for CLOSE_S at most."""
        try:
            self._queue.put(None, timeout=CLOSE_S)
        except queue.Full:
            return
        self._thread.join(CLOSE_S)
        log.info("recorded %d frames, left out %d", self.written, self.left_out)

    def _write_all(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._bytes >= self.options.most_bytes:
                self.left_out += 1
                continue
            try:
                self._bytes += self._write(*item)
                self.written += 1
            except OSError as error:
                self.left_out += 1
                log.error("a frame was not recorded: %s", error.strerror)
            if self._bytes >= self.options.most_bytes:
                log.warning("--record has its %d bytes: nothing more is recorded", self.options.most_bytes)

    def _write(self, observation: Observation, reply: Reply, episode: str, step: int) -> int:
        directory, self._count = self.options.directory, self._count + 1
        picture = directory / f"{self._run}-{self._count:07d}.png"
        draft = picture.with_suffix(".part")
        Image.fromarray(observation.image).save(draft, format="PNG", compress_level=1)
        draft.replace(picture)
        words = observation.instruction
        entry = {
            "image": picture.name,
            "instruction": marked(words) if self.options.redact else words,
            "unnorm_key": reply.unnorm_key,
            "episode": episode,
            "step": step,
            "action": reply.action.tolist(),
        }
        line = json.dumps(entry).encode() + b"\n"
        with (directory / INDEX).open("ab") as index:
            index.write(line)
        return picture.stat().st_size + len(line)


def marked(words: str) -> str:
    """What stands in the place of an instruction that is not to be kept: equal ones are told by it, and no more."""
    return f"redacted {sha256(words.encode()).hexdigest()[:8]}"


def _plain(robot: str) -> str:
    """A robot's name as part of an episode's; other names stay apart by their hash."""
    plain = re.sub(r"[^\w.-]", "_", robot, flags=re.ASCII)
    return plain if plain == robot else f"{plain}-{sha256(robot.encode('utf-8', 'replace')).hexdigest()[:8]}"


def _whole_lines(index: Path) -> None:
    """Cut off a line that a crash left unfinished."""
    if index.exists():
        content = index.read_bytes()
        if not content.endswith(b"\n"):
            index.write_bytes(content[: content.rfind(b"\n") + 1])
