"""Links over a real socket and a real pseudo-terminal, the robot's end in a thread, or one that misbehaves."""

from __future__ import annotations

import io
import json
import os
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from edge_vla.errors import ResourceError, UsageError
from edge_vla.robot.faces import Command, LinkError
from edge_vla.robot.links import open_link
from edge_vla.robot.links.answered import AnsweredLink
from edge_vla.robot.links.lines import LineSink
from edge_vla.robot.links.serial_port import check
from edge_vla.robot.receiver import Command as Taken
from edge_vla.robot.receiver import Receiver, serve

SOON = 10.0  # seconds; a busy machine


class RobotsEnd:
    """The reference receiver in a thread, and what it did."""

    def __init__(self, source: socket.socket | int, framing: str, dims: int = 3, lapse_s: float = 0.6) -> None:
        self.taken, self.rests = list[Taken](), list[str]()
        self.receiver, self._end = Receiver(dims, framing), threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(source, lapse_s), daemon=True)
        self._thread.start()

    def _serve(self, source: socket.socket | int, lapse_s: float) -> None:
        ended = self._end.is_set
        serve(source, self.receiver, self.taken.append, self.rests.append, lapse_s=lapse_s, ended=ended)

    def close(self) -> None:
        self._end.set()
        self._thread.join(SOON)


@contextmanager
def over_tcp(json_lines: bool = False, dims: int = 3, lapse_s: float = 0.6) -> Iterator[tuple[AnsweredLink, RobotsEnd]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        end = RobotsEnd(listener, "json" if json_lines else "binary", dims, lapse_s)
        scheme = "tcp+json" if json_lines else "tcp"
        link = open_link(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", 3)
        try:
            yield link, end
        finally:
            link.close()
            end.close()


@contextmanager
def over_serial() -> Iterator[tuple[AnsweredLink, RobotsEnd, int]]:
    """The third: another descriptor of the robot's side, to write noise to."""
    pytest.importorskip("serial", reason="pip install 'edge-vla[act]'")
    ours, theirs = os.openpty()
    end = RobotsEnd(ours, "cobs")
    link = open_link(f"serial:{os.ttyname(theirs)}?baud=115200", 3)
    try:
        yield link, end, ours
    finally:
        link.close()
        end.close()
        os.close(ours)
        os.close(theirs)


def command(*values: float, valid_s: float = SOON, kind: str = "action") -> Command:
    now = time.monotonic()
    return Command(kind, 1, np.array(values), now - 0.01, now + valid_s)  # type: ignore[arg-type]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("json_lines", [False, True])
def test_commands_arrive_over_tcp_and_send_returns_when_they_have(json_lines: bool) -> None:
    with over_tcp(json_lines) as (link, end):
        link.wait(SOON)
        for i in range(20):
            link.send(command(i, 0.1, -1 / 3))
            assert end.taken[-1].values == (i, 0.1, -1 / 3)
        assert len(end.taken) == 20
        assert all(10_000 <= (each.age_us or 0) < 1e6 * SOON for each in end.taken)


def test_commands_arrive_over_serial() -> None:
    with over_serial() as (link, end, _):
        link.wait(SOON)
        for i in range(20):
            link.send(command(i, 0.1, -1 / 3))
            assert end.taken[-1].values == (i, 0.1, -1 / 3)
        assert len(end.taken) == 20


def test_a_serial_line_that_loses_bytes_loses_no_command() -> None:
    """Each command is sent until it is answered; what is damaged is skipped, what comes twice is taken once."""
    with over_serial() as (link, end, _):
        link.wait(SOON)
        port = link._port
        assert port is not None
        whole, sent = port.write, 0

        def lossy(data: bytes) -> None:
            nonlocal sent
            sent += 1
            whole((data[:20] + data[21:], data, data + data, b"\x07noise" + data, data[:30])[sent % 5])

        port.write = lossy  # type: ignore[method-assign]
        for i in range(20):
            link.send(command(i, 0, 0))
        assert [each.values[0] for each in end.taken] == list(range(20))
        assert end.receiver.refused["damaged"] > 0
        assert end.receiver.refused["doubled"] > 0


def test_a_cut_connection_is_opened_again_and_says_what_is_not_known() -> None:
    with over_tcp(lapse_s=SOON) as (link, end):
        link.wait(SOON)
        link.send(command(1, 2, 3))
        port = link._port
        assert port is not None
        port._socket.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]
        until(lambda: bool(end.rests))
        assert "connection is gone" in end.rests[0]
        until(lambda: link.connections == 2)
        link.wait(SOON)
        link.send(command(4, 5, 6))
        assert [each.values[0] for each in end.taken] == [1, 4]


def test_without_a_robot_nothing_is_taken_and_the_message_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    link = open_link(f"tcp://127.0.0.1:{port}", 3)
    try:
        with pytest.raises(LinkError, match="start the robot's program") as caught:
            link.wait(0.3)
        assert (caught.value.fault, caught.value.taken) == ("cut", False)
        with pytest.raises(LinkError) as caught:
            link.send(command(1, 2, 3))
        assert caught.value.taken is False
    finally:
        link.close()


def test_a_robot_that_never_answers_is_silent_and_nobody_knows() -> None:
    """It beats and takes nothing: `send` ends when the command is too old, not later."""
    with over_tcp() as (link, end):
        link.wait(SOON)
        end.receiver.feed = lambda data: []  # type: ignore[method-assign]
        began = time.monotonic()
        with pytest.raises(LinkError, match="did not answer a command that was sent") as caught:
            link.send(command(1, 2, 3, valid_s=0.3))
        assert 0.25 < time.monotonic() - began < SOON
        assert (caught.value.fault, caught.value.taken) == ("silent", None)
        del end.receiver.feed
        link.send(command(4, 5, 6))
        assert [each.values[0] for each in end.taken] == [4]


def test_an_open_connection_that_says_nothing_is_not_ready() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        link = open_link(f"tcp://127.0.0.1:{listener.getsockname()[1]}", 3)
        try:
            with pytest.raises(LinkError, match="says nothing: is the robot's program running"):
                link.wait(0.5)
        finally:
            link.close()


def test_what_is_no_robot_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n" * 4)
                time.sleep(0.5)

        threading.Thread(target=answer, daemon=True).start()
        link = open_link(f"tcp://127.0.0.1:{listener.getsockname()[1]}", 3)
        try:
            until(lambda: link._fault.fault == "malformed")
            with pytest.raises(LinkError, match="is this its address, and the same protocol"):
                link.ready()
        finally:
            link.close()


def test_the_robot_s_dimensions_are_compared_before_anything_moves() -> None:
    with over_tcp(dims=6) as (link, end):
        with pytest.raises(LinkError, match=r"takes 6 values and robot\.toml declares 3"):
            link.wait(1.0)
        assert end.taken == []


def test_a_refusal_is_known_not_to_be_taken() -> None:
    """Between its beats a robot may become unready: then the command's own answer says so."""
    with over_tcp() as (link, end):
        link.wait(SOON)
        may_start, end.receiver.ready = end.receiver._may_start, True

        def refusing(command: Taken) -> bool:
            end.receiver.ready = False
            return may_start(command)

        end.receiver._may_start = refusing  # type: ignore[method-assign]
        with pytest.raises(LinkError, match="emergency stop") as caught:
            link.send(command(1, 2, 3))
        assert (caught.value.fault, caught.value.taken) == ("refused", False)
        with pytest.raises(LinkError, match="release it there") as caught:
            link.ready()
        del end.receiver._may_start
        end.receiver.ready = True
        link.wait(SOON)
        link.send(command(4, 5, 6))
        assert [each.values[0] for each in end.taken] == [4]


def test_a_command_that_is_too_old_is_not_sent() -> None:
    with over_tcp() as (link, end):
        link.wait(SOON)
        with pytest.raises(LinkError) as caught:
            link.send(command(1, 2, 3, valid_s=-0.001))
        assert caught.value.taken is False
        time.sleep(0.1)
        assert end.taken == []


def test_the_robot_rests_by_itself_when_nothing_fresh_comes() -> None:
    with over_tcp(lapse_s=0.2) as (link, end):
        link.wait(SOON)
        link.send(command(1, 2, 3))
        until(lambda: bool(end.rests))
        assert "no fresh command" in end.rests[0]
        link.send(command(1, 2, 3))
        assert len(end.rests) == 1


def test_a_second_policy_cannot_take_a_robot_that_moves() -> None:
    with over_tcp(lapse_s=SOON) as (link, end):
        link.wait(SOON)
        link.send(command(1, 2, 3))
        other = open_link(link.name, 3)
        try:
            with pytest.raises(LinkError):
                other.wait(0.5)
            link.send(command(4, 5, 6))
            assert len(end.taken) == 2
        finally:
            other.close()


def test_a_second_process_goes_on_where_the_first_ended() -> None:
    with over_tcp(lapse_s=0.1) as (link, end):
        link.wait(SOON)
        link.send(command(1, 2, 3))
        link.close()
        until(lambda: not end.receiver.moving)
        other = open_link(link.name, 3)
        try:
            other.wait(SOON)
            other.send(command(4, 5, 6))
            assert [each.values[0] for each in end.taken] == [1, 4]
        finally:
            other.close()


def test_a_port_that_is_not_there_and_one_that_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LinkError, match="ls /dev/serial/by-id"):
        check(str(tmp_path / "ttyUSB9"))
    port = tmp_path / "ttyUSB0"
    port.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # tests run as root, who may open everything
    monkeypatch.setattr(Path, "group", lambda self: "dialout")
    with pytest.raises(LinkError, match=r"Permission denied .* sudo usermod -aG dialout \$USER"):
        check(str(port))


def test_a_group_without_a_name_is_said_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container, whose devices belong to the host's groups."""
    port = tmp_path / "ttyUSB0"
    port.touch()
    os.chown(port, os.getuid(), os.getgid())
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(Path, "group", nameless)
    with pytest.raises(LinkError, match=rf"its group is {os.getgid()}"):
        check(str(port))


def nameless(path: Path) -> str:
    raise KeyError(f"getgrgid(): gid not found: {path}")


LIES = [
    '{"v":1,"kind":"beat","verdict":"none","moving":false,"ready":true,"number":0,"stamp":1%s,"dims":3' % ("0" * 400),
    '{"v":1,"kind":"beat","verdict":"none","moving":false,"ready":true,"number":-1,"stamp":1,"dims":3',
    '{"v":1,"kind":"beat","verdict":"none","moving":false,"ready":true,"number":4294967296,"stamp":1,"dims":3',
    '{"v":1,"kind":"beat","verdict":[],"moving":false,"ready":true,"number":0,"stamp":1,"dims":3',
    '{"v":1,"kind":%s' % ("[" * 4000 + "]" * 4000),
]


@pytest.mark.parametrize("lie", LIES)
def test_a_beat_that_cannot_be_is_malformed_and_the_link_goes_on(lie: str) -> None:
    """Twice: a thread that died of the first would never connect again."""
    line = lie.encode() + b',"crc":"%08x"}\n' % zlib.crc32(lie.encode())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SOON)
        link = open_link(f"tcp+json://127.0.0.1:{listener.getsockname()[1]}", 3)
        try:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(line)
                    until(lambda: link._fault.fault == "malformed")
        finally:
            link.close()


def test_a_robot_whose_numbers_are_used_up_is_told_to_start_again() -> None:
    with over_tcp() as (link, end):
        end.receiver.number = 2**32 - 1
        until(lambda: link._beat is not None and link._beat.number == 2**32 - 1)
        link.wait(SOON)
        with pytest.raises(LinkError, match="start the robot's program again") as caught:
            link.send(command(1, 2, 3))
        assert caught.value.taken is False
        assert end.taken == []


def test_a_robot_whose_program_fails_is_brought_to_rest_by_the_receiver() -> None:
    rests = list[str]()

    def act(command: Taken) -> None:
        raise KeyError("the motor's driver")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        failed = threading.Event()

        def run() -> None:
            with pytest.raises(KeyError):
                serve(listener, Receiver(3), act, rests.append)
            failed.set()

        threading.Thread(target=run, daemon=True).start()
        link = open_link(f"tcp://127.0.0.1:{listener.getsockname()[1]}", 3)
        try:
            link.wait(SOON)
            with pytest.raises(LinkError):
                link.send(command(1, 2, 3, valid_s=0.5))
            assert failed.wait(SOON)
        finally:
            link.close()
    assert rests == ["the receiver ended"]


@pytest.mark.parametrize(
    "address",
    ["", "tcp://", "tcp://host", "tcp://host:x", "tcp://host:99999", "udp://h:1", "serial:", "serial:/dev/x?speed=9",
     "serial:/dev/x?baud=fast", "serial:/dev/x?baud=²", "tcp://a..b:5555", "tcp://h:1/path", "/dev/ttyUSB0"],
)  # fmt: skip
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="expected tcp://HOST:PORT"):
        open_link(address, 3)


def test_lines_say_everything_and_a_closed_pipe_counts_as_cut() -> None:
    stream = io.StringIO()
    sink = LineSink(stream)
    sink.send(command(1.5, -2, 0, valid_s=0.4))
    line = json.loads(stream.getvalue())
    assert line["kind"] == "action"
    assert line["values"] == [1.5, -2, 0]
    assert line["age_ms"] >= 10
    assert 0 < line["valid_ms"] <= 400
    stream.close()
    with pytest.raises(LinkError) as caught:
        sink.send(command(1, 2, 3))
    assert caught.value.fault == "cut"
    with pytest.raises(ResourceError, match="nobody reads") as ended:
        sink.ready()
    assert not isinstance(ended.value, LinkError)  # which would be waited out, for ever
