"""What passes on a wire, damaged in every way: a robot's end acts on a command whole and once, or not at all.

The two ends are written apart (`links/wire.py`, `receiver.py`), so each is the other's oracle.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import socket
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_vla.robot import receiver as robots_end
from edge_vla.robot.faces import LinkError
from edge_vla.robot.links import wire
from edge_vla.robot.links.freshness import Freshness
from edge_vla.robot.links.wire import Binary, Codec, Lines, Order, Packets
from edge_vla.robot.receiver import Command, Receiver

RECEIVER = Path(robots_end.__file__)
FRAMINGS: dict[str, type[Binary] | type[Packets] | type[Lines]] = {"binary": Binary, "cobs": Packets, "json": Lines}
framings = st.sampled_from(list(FRAMINGS))
values = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=7, max_size=7).map(tuple)
orders = st.builds(
    Order,
    kind=st.sampled_from(["action", "hold", "stop"]),
    number=st.just(0),
    valid_us=st.integers(1, 60_000_000),
    echo=st.just(0),
    age_us=st.none() | st.integers(0, 2**32 - 2),
    values=values,
)


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def robot(framing: str) -> Receiver:
    return Receiver(7, framing, Clock())


def numbered(found: list[Order], end: Receiver) -> list[Order]:
    """As a link would send them: numbers grow, and each answers the newest beat."""
    return [dataclasses.replace(order, number=i, echo=end.stamp()) for i, order in enumerate(found, start=1)]


def as_order(command: Command) -> Order:
    return Order(**command._asdict())


def fed(end: Receiver, pieces: list[bytes]) -> tuple[list[Order], bool]:
    """What the robot would start, and whether it gave the connection up."""
    acted: list[Order] = []
    try:
        for piece in pieces:
            acted += map(as_order, end.feed(piece))
    except ValueError:
        return acted, True
    return acted, False


def beats(codec: Codec, pieces: list[bytes]) -> list[wire.Beat]:
    """Those that were read until, if at all, the stream was found malformed."""
    found = []
    with contextlib.suppress(LinkError):
        for piece in pieces:
            found += codec.feed(piece)
    return found


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places})
    return [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]


@given(framings, st.lists(orders, max_size=6), st.lists(st.integers(0, 2000), max_size=8))
def test_what_is_sent_is_what_is_started_however_it_arrives(framing: str, sent: list[Order], places: list[int]) -> None:
    end = robot(framing)
    sent = numbered(sent, end)
    codec = FRAMINGS[framing]()
    acted, given_up = fed(end, cut(b"".join(map(codec.pack, sent)), places))
    assert acted == sent
    assert not given_up


damage = st.tuples(st.sampled_from(["lose", "double", "insert", "flip"]), st.integers(0, 2000), st.binary(max_size=40))


def damaged(data: bytes, how: list[tuple[str, int, bytes]]) -> bytes:
    for kind, place, extra in how:
        at, width = place % (len(data) + 1), len(extra)
        if kind == "lose":
            data = data[:at] + data[at + width :]
        elif kind == "double":
            data = data[: at + width] + data[at : at + width] + data[at + width :]
        elif kind == "insert":
            data = data[:at] + extra + data[at:]
        elif data:
            flipped = bytes(a ^ b for a, b in zip(data[at : at + width], extra, strict=False))
            data = data[:at] + flipped + data[at + len(flipped) :]
    return data


@given(framings, st.lists(orders, min_size=1, max_size=5), st.lists(damage, min_size=1, max_size=4))
def test_damaged_bytes_are_never_a_wrong_action(
    framing: str, sent: list[Order], how: list[tuple[str, int, bytes]]
) -> None:
    """Each that is started is one that was sent, in order and once; serial goes on with the next whole message."""
    end = robot(framing)
    sent = numbered(sent, end)
    codec = FRAMINGS[framing]()
    acted, given_up = fed(end, [damaged(b"".join(map(codec.pack, sent)), how)])
    numbers = [order.number for order in acted]
    assert all(order in sent for order in acted)
    assert numbers == sorted(set(numbers))
    after = dataclasses.replace(sent[0], number=1000, echo=end.stamp())
    if framing == "cobs":
        assert not given_up
        assert fed(end, [b"\0", codec.pack(after)]) == ([after], False)
    elif given_up:
        end.connect()
        after = dataclasses.replace(after, echo=end.stamp())
        assert fed(end, [codec.pack(after)]) == ([after], False)


@given(framings, st.lists(orders, min_size=1, max_size=4), st.integers(1, 3))
def test_doubled_messages_are_started_once(framing: str, sent: list[Order], again: int) -> None:
    end = robot(framing)
    sent = numbered(sent, end)
    codec = FRAMINGS[framing]()
    data = b"".join(codec.pack(order) * (again + 1) for order in sent)
    assert fed(end, [data, data]) == (sent, False)
    assert end.refused["doubled"] == len(sent) * (2 * again + 1)


@given(framings, orders, st.floats(0, 100), st.integers(-50_000_000, 50_000_000))
def test_a_command_is_started_only_while_its_robot_s_own_clock_allows(
    framing: str, order: Order, waited: float, moved: int
) -> None:
    """`waited` on the way; `moved`: an echo that is so many microseconds off is of another life, or of the future."""
    end = robot(framing)
    order = dataclasses.replace(order, number=1, echo=end.stamp() + moved)
    assert isinstance(end._clock, Clock)
    end._clock.now += waited
    acted, _ = fed(end, [FRAMINGS[framing]().pack(order)]) if order.echo >= 0 else ([], False)
    assert bool(acted) == (moved >= 0 and order.echo <= end.stamp() <= order.echo + order.valid_us)
    assert acted or end.verdict in ("stale", "none")


@given(
    st.lists(st.tuples(st.floats(0.001, 0.5), st.floats(0, 0.4)), min_size=1, max_size=30),
    st.integers(0, 2**47),
    st.floats(0, 0.6),
    st.floats(0, 0.6),
    st.booleans(),
)
def test_no_command_starts_after_it_was_valid_however_slow_the_way(
    beats: list[tuple[float, float]], base: int, valid_s: float, way_s: float, restarts: bool
) -> None:
    """True time in seconds; the robot's clock is off by `base`. The nearest bound is that of the fastest beat."""
    fresh, left, arrived, delays = Freshness(), 0.0, 0.0, list[tuple[float, float]]()
    for i, (pause, delay) in enumerate(beats):
        left += pause
        arrived = max(arrived, left + delay)  # a stream keeps its order
        clock = base + int(1e6 * left) + (10**13 if restarts and i >= len(beats) // 2 else 0)
        fresh.add(clock, arrived)
        if not restarts or i >= len(beats) // 2:
            delays.append((arrived, arrived - left))
    echo, valid = fresh.until(arrived + valid_s)
    now = base + int(1e6 * (arrived + way_s)) + (10**13 if restarts else 0)
    starts = echo <= now <= echo + valid
    assert not starts or way_s <= valid_s + 2e-6
    fastest = min(delay for at, delay in delays if arrived - at < 4.9)
    assert starts or way_s + fastest >= valid_s - 3e-6


def test_a_command_made_for_an_earlier_connection_is_not_started() -> None:
    end = robot("binary")
    order = Order("action", 1, 50_000_000, end.stamp(), None, (0.0,) * 7)
    assert isinstance(end._clock, Clock)
    end._clock.now += 0.01
    end.connect()
    assert fed(end, [Binary().pack(order)]) == ([], False)
    assert end.verdict == "stale"


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_robot_that_must_not_move_and_one_of_other_dimensions_refuse(framing: str) -> None:
    end, codec = robot(framing), FRAMINGS[framing]()
    end.ready = False
    assert fed(end, [codec.pack(Order("action", 1, 10**6, end.stamp(), 5, (0.5,) * 7))]) == ([], False)
    assert end.verdict == "not now"
    end.ready = True
    assert fed(end, [codec.pack(Order("action", 2, 10**6, end.stamp(), 5, (0.5,) * 6))]) == ([], False)
    assert end.verdict == "shape"
    assert [beat.verdict for beat in codec.feed(end.beat())] == ["shape"]


@given(
    framings, st.integers(0, 2**32 - 1), st.sampled_from(wire.VERDICTS), st.booleans(), st.lists(st.integers(0, 300))
)
def test_beats_come_through_in_any_pieces(
    framing: str, number: int, verdict: wire.Verdict, moving: bool, places: list[int]
) -> None:
    end, codec = robot(framing), FRAMINGS[framing]()
    end.number, end.verdict, end.moving, end.ready = number, verdict, moving, number % 2 == 0
    found = [beat for piece in cut(end.beat() * 3, places) for beat in codec.feed(piece)]
    assert found == [wire.Beat(number, verdict, end.stamp(), 7, moving, number % 2 == 0)] * 3


@given(framings, st.lists(damage, min_size=1, max_size=3))
def test_a_damaged_beat_is_no_beat(framing: str, how: list[tuple[str, int, bytes]]) -> None:
    end, codec = robot(framing), FRAMINGS[framing]()
    end.number, end.verdict = 3, "taken"
    [sound] = FRAMINGS[framing]().feed(end.beat())
    assert all(beat == sound for beat in beats(codec, [damaged(end.beat() * 3, how)]))


@given(st.binary(max_size=600))
def test_cobs_has_no_zeros_and_an_inverse(data: bytes) -> None:
    assert 0 not in wire.stuffed(data)
    assert wire.unstuffed(wire.stuffed(data)) == data
    assert robots_end.from_cobs(wire.stuffed(data)) == data


@given(st.binary(max_size=250))
def test_the_robot_s_cobs_is_read_here(data: bytes) -> None:
    assert wire.unstuffed(robots_end.to_cobs(data)) == data


@given(st.binary(max_size=300))
def test_any_bytes_are_cobs_or_refused(data: bytes) -> None:
    found = wire.unstuffed(data)
    assert found is None or wire.unstuffed(wire.stuffed(found)) == found


@given(framings, st.lists(st.binary(max_size=200), max_size=5))
def test_noise_is_never_an_action_and_never_fills_memory(framing: str, noise: list[bytes]) -> None:
    end, codec = robot(framing), FRAMINGS[framing]()
    assert fed(end, noise)[0] == []
    assert beats(codec, noise) == []
    for _ in range(100):
        if fed(end, [b"\x01" * 4096])[1]:
            end.connect()
    assert len(end._kept) <= 8192 + 3 * 4096


@pytest.mark.parametrize("bad", [(), (float("nan"),), (float("inf"), 0.0), (0.0,) * 65])
def test_what_is_no_command_is_not_written(bad: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="finite values"):
        Binary().pack(Order("action", 1, 1, 1, None, bad))


PAGE = Path(__file__).resolve().parents[2] / "docs" / "act.md"


def test_messages_are_as_the_page_shows_them() -> None:
    """The examples of docs/act.md, byte by byte."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    shown = " ".join(" ".join(line.split("#")[0].split()) for line in lines)
    order = Order("action", 7, 350_000, 1_000_000, 42_000, (1.5, -1.0))
    end = Receiver(2, "binary", lambda: 1.0)
    end._base, end.number, end.verdict, end.moving = 0, 7, "taken", True
    assert wire.packed(order).hex(" ") in shown
    assert Packets().pack(order).hex(" ") in shown
    assert end.beat().hex(" ") in shown
    end.framing = "json"
    for line in (Lines().pack(order), end.beat()):
        assert line.decode().strip() in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "body",
    [
        '{"v":1,"kind":"action","number":"7","valid_us":1,"echo":1,"age_us":1,"values":[1.0]',
        '{"v":1,"kind":"action","number":7.5,"valid_us":1,"echo":1,"age_us":1,"values":[1.0]',
        '{"v":1,"kind":"action","number":true,"valid_us":1,"echo":1,"age_us":1,"values":[1.0]',
        '{"v":1,"kind":"action","number":7,"valid_us":null,"echo":1,"age_us":1,"values":[1.0]',
        '{"v":1,"kind":"action","number":7,"valid_us":1,"echo":[],"age_us":1,"values":[1.0]',
        '{"v":1,"kind":"action","number":7,"valid_us":-1,"echo":1,"age_us":1,"values":[1.0]',
        '{"v":1,"kind":"action","number":7,"valid_us":1,"echo":1,"age_us":1,"values":"12"',
        '{"v":1,"kind":"action","number":7,"valid_us":1,"echo":1,"age_us":1,"values":[true]',
        '{"v":1,"kind":"action","number":7,"valid_us":1,"echo":1,"age_us":1,"values":[1%s]' % ("0" * 400),
        '{"v":1,"kind":[],"number":7,"valid_us":1,"echo":1,"age_us":1,"values":[1.0]',
        '{"v":1,"kind":%s' % ("[" * 4000 + "]" * 4000),
    ],
)
def test_a_line_that_is_whole_and_no_command_ends_the_connection_only(body: str) -> None:
    line = body.encode() + b',"crc":"%08x"}\n' % zlib.crc32(body.encode())
    robot = Receiver(1, "json")
    with pytest.raises(ValueError):  # what `serve` takes for the end of a connection
        robot.feed(line)
    assert robot.number == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--listen", "here", "--dims", "7"], "HOST:PORT"),
        (["--listen", "127.0.0.1:99999", "--dims", "7"], "HOST:PORT"),
        (["--listen", "127.0.0.1:0", "--dims", "0"], "--dims"),
        (["--listen", "127.0.0.1:0", "--dims", "99999"], "--dims"),
        (["--port", "/dev/none", "--dims", "7"], "/dev/none"),
        (["--port", "/dev/null", "--dims", "7"], "/dev/null"),
        (["--port", "/dev/null", "--baud", "12345", "--dims", "7"], "--baud"),
    ],
)
def test_the_robot_s_end_says_what_is_wrong_in_a_line(arguments: list[str], says: str) -> None:
    ended = subprocess.run([sys.executable, RECEIVER, *arguments], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert says in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_the_robot_s_end_ends_at_ctrl_c_and_says_who_has_its_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = ["--listen", f"127.0.0.1:{taken.getsockname()[1]}", "--dims", "7"]
        ended = subprocess.run([sys.executable, RECEIVER, *arguments], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, "Traceback" in ended.stderr) == (2, False)
    assert "in use" in ended.stderr
    with subprocess.Popen([sys.executable, RECEIVER, *arguments], stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", int(arguments[1].rpartition(":")[2]))):
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        try:
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()  # or leaving the block waits for ever
    assert (process.returncode, err) == (130, "")


def test_the_robot_s_end_is_one_file_of_the_standard_library(tmp_path: Path) -> None:
    copy = tmp_path / "receiver.py"
    copy.write_bytes(Path(robots_end.__file__).read_bytes())
    script = "import receiver, sys; print(sorted({'numpy', 'edge_vla', 'torch'} & set(sys.modules)))"
    command = [sys.executable, "-S", "-E", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
