"""The server under what goes wrong: strangers, floods, slow and dead clients, a failing engine."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from edge_vla.errors import NumericError, UsageError
from edge_vla.openvla.statistics import ActionStatistics
from edge_vla.serve.client import DisconnectedError, RefusedError, Robot
from edge_vla.serve.host import HostOptions
from edge_vla.serve.lifecycle import ServeOptions
from edge_vla.serve.limits import Limits
from edge_vla.serve.logs import JsonLines
from edge_vla.serve.messages import RefusedError as Refusal
from edge_vla.serve.tokens import Caller, Token
from tests.serve.core.conftest import WORDS, Live, patient, picture, running, wait_until
from tests.serve.core.raw import Faulty, native, observe, receive, socket_to

SOON = 20_000.0
TOKEN = "0123456789abcdef0123456789abcdef"
SECRET = "/home/secret/weights and a stack"


@pytest.fixture
def faulty(live: Live) -> Iterator[Faulty]:
    fault = Faulty(live)
    yield fault
    live.policy.engine = fault.engine


def test_an_engine_s_exception_stays_in_the_log(live: Live, faulty: Faulty, caplog: pytest.LogCaptureFixture) -> None:
    faulty.fault = RuntimeError(SECRET)
    with Robot(live.ws, "arm") as robot:
        with pytest.raises(RefusedError) as refused:
            robot.act(picture(0), WORDS, deadline_ms=SOON)
        assert refused.value.code == "E_ENGINE"
        assert "secret" not in str(refused.value)
        faulty.fault = None
        assert robot.act(picture(0), WORDS, deadline_ms=SOON).fresh
    (logged,) = [record for record in caplog.records if record.exc_info]
    line = json.loads(JsonLines().format(logged))
    assert line["request_id"] == refused.value.request_id
    assert SECRET in line["exception"]


def test_a_non_finite_number_is_never_an_action(live: Live, faulty: Faulty) -> None:
    before = live.metric("edgevla_nonfinite_total")
    faulty.fault = NumericError("a logit is NaN")
    with Robot(live.ws, "arm") as robot:
        with pytest.raises(RefusedError) as refused:
            robot.act(picture(0), WORDS, deadline_ms=SOON)
        assert refused.value.code == "E_NUMERIC"
        statistics = live.policy.config.statistics
        key = next(iter(statistics))
        good, statistics._sets[key] = (
            statistics[key],
            ActionStatistics(np.full(7, np.nan), np.full(7, np.nan), np.ones(7, bool)),
        )
        faulty.fault = None
        try:
            with pytest.raises(RefusedError) as refused:
                robot.act(picture(0), WORDS, deadline_ms=SOON)
        finally:
            statistics._sets[key] = good
        assert refused.value.code == "E_NUMERIC"
    assert live.metric("edgevla_nonfinite_total") == before + 2


def test_what_is_queued_by_a_robot_that_leaves_never_runs(live: Live, faulty: Faulty) -> None:
    faulty.gate = threading.Event()
    with native(live, "first") as first, native(live, "second") as second:
        observe(first, 1)
        assert faulty.entered.wait(10)
        observe(second, 1)
        wait_until(lambda: live.metric("edgevla_queue_depth") == 1)
        second.close()
        wait_until(lambda: live.metric("edgevla_queue_depth") == 0)
        faulty.gate.set()
        assert receive(first)["id"] == 1
    assert faulty.decisions == 1


def test_the_result_of_a_robot_that_left_in_flight_is_thrown_away(live: Live, faulty: Faulty) -> None:
    faulty.gate = threading.Event()
    with native(live, "gone") as socket:
        observe(socket, 1)
        assert faulty.entered.wait(10)
    with native(live, "gone") as again:
        observe(again, 2)
        faulty.gate.set()
        assert receive(again)["id"] == 2
        with pytest.raises(TimeoutError):
            again.recv(0.3)


def test_messages_that_are_none_get_an_error_and_the_connection_lives(live: Live) -> None:
    with native(live) as socket:
        for bad in (b"", b"\xc1", b"\x80", msgpack.packb({"type": "kill"}), msgpack.packb([1]), "text"):
            socket.send(bad)
            found = receive(socket)
            assert (found["type"], found["code"]) == ("error", "E_MALFORMED"), bad
            assert found["request_id"]
        observe(socket, 7, shape=[112, 113, 3])
        assert receive(socket)["code"] == "E_IMAGE_SHAPE"
        observe(socket, 8, image=b"\x89PNG\r\n\x1a\n damaged", format="png")
        assert receive(socket)["code"] == "E_MALFORMED"
        observe(socket, 9)
        assert receive(socket)["id"] == 9


def test_what_is_too_large_is_not_read(live: Live) -> None:
    with native(live) as socket, pytest.raises(ConnectionClosed):  # noqa: PT012 -- whichever notices first
        socket.send(b"\0" * (2**24 + 1))
        socket.recv(10)
    with socket_to(live) as raw:
        raw.sendall(b"POST /act HTTP/1.1\r\nHost: localhost\r\nContent-Length: 209715200\r\n\r\n")
        assert b" 413 " in raw.recv(4096)


def test_health_metadata_and_errors_are_plain(live: Live) -> None:
    assert live.get("/healthz") == (200, "OK\n")
    assert live.json("/readyz") == {"status": "ready", "stage": "measure", "fraction": 1.0}
    about = live.json("/metadata")
    assert about["unnorm_keys"] == ["edge_vla_demo_world1"]
    assert about["robots_at_hz"]["5"] >= about["robots_at_hz"]["10"]
    assert "edgevla_model_info{" in live.get("/metrics")[1]
    status, body = live.get("/nowhere")
    assert (status, json.loads(body)["code"]) == (404, "E_NOT_FOUND")
    assert live.get("/metadata?x", Origin="https://evil.example")[0] == 401
    assert live.get("/metadata", Host="evil.example")[0] == 401, "a name that resolves to 127.0.0.1"


def test_pages_of_other_origins_get_no_socket(live: Live) -> None:
    with (
        pytest.raises(InvalidStatus) as denied,
        native(live, additional_headers={"Origin": "https://evil.example"}),
    ):
        pass
    assert denied.value.response.status_code == 401
    with native(live, additional_headers={"Origin": f"http://127.0.0.1:{live.port}"}) as socket:
        observe(socket, 1)
        assert receive(socket)["type"] == "action"


def test_without_its_token_nobody_gets_in(artifact: Path) -> None:
    with running(artifact, patient(tokens=(Token(TOKEN),))) as live:
        assert live.get("/healthz")[0] == live.get("/readyz")[0] == 200
        for path in ("/metadata", "/metrics", "/nowhere"):
            assert live.get(path)[0] == 401
            assert live.get(path, Authorization=f"Bearer {TOKEN[:-1]}")[0] == 401
            assert live.get(path, Authorization=f"Basic {TOKEN}")[0] == 401
            assert live.get(path, Authorization=f"Api-Key {TOKEN}")[0] in (200, 404)
        for token in (None, "wrong-wrong-wrong", "ü"):
            with pytest.raises((RefusedError, DisconnectedError, UnicodeEncodeError)), Robot(live.ws, "a", token=token):
                pass
        with Robot(live.ws, "arm", token=TOKEN) as robot:
            assert robot.act(picture(0), WORDS, deadline_ms=SOON).fresh


def test_a_token_has_its_rate_and_its_connections(artifact: Path) -> None:
    few, many = "few-of-everything", "as-much-as-it-asks"
    with running(artifact, patient(tokens=(Token(few, 0.001, 1), Token(many)))) as live:
        with Robot(live.ws, "arm", token=few) as robot:
            assert robot.act(picture(0), WORDS, deadline_ms=SOON).fresh
            with pytest.raises(RefusedError, match="observations a second") as refused:
                robot.act(picture(0), WORDS, deadline_ms=SOON)
            assert (refused.value.code, refused.value.request_id != "") == ("E_RATE", True)
            assert 0 < (refused.value.retry_after_s or 0) <= 1000
            with pytest.raises(RefusedError, match="1 connections"), Robot(live.ws, "second", token=few):
                pass
            with Robot(live.ws, "other", token=many) as other:
                assert all(other.act(picture(0), WORDS, deadline_ms=SOON).fresh for _ in range(3))
        pixels = {
            "__numpy__": base64.b64encode(picture(0).tobytes()).decode(),
            "dtype": "|u1",
            "shape": picture(0).shape,
        }
        body = json.dumps({"image": pixels, "instruction": WORDS}).encode()
        asked = urllib.request.Request(f"http://127.0.0.1:{live.port}/act", body, {"Authorization": f"Bearer {few}"})
        with pytest.raises(urllib.error.HTTPError) as denied:
            urllib.request.urlopen(asked)
        assert (denied.value.code, json.load(denied.value)["code"]) == (429, "E_RATE")
        assert int(denied.value.headers["Retry-After"]) > 0
        assert 'edgevla_dropped_total{reason="rate"} 3.0' in live.get("/metrics", Authorization=f"Bearer {many}")[1]
        with Robot(live.ws, "arm", token=few) as robot, pytest.raises(RefusedError):  # the connection is free again
            robot.act(picture(0), WORDS, deadline_ms=SOON)


def test_a_dead_camera_is_counted_and_refused_where_asked(artifact: Path) -> None:
    options = patient()
    serving = replace(options.serving, reject_frozen=2)
    with running(artifact, replace(options, serving=serving)) as live, Robot(live.ws, "arm") as robot:
        for seed in (0, 0, 1, 1):  # each but once
            assert robot.act(picture(seed), WORDS, deadline_ms=SOON).fresh
        for _ in range(2):
            with pytest.raises(RefusedError, match="camera") as refused:
                robot.act(picture(1), WORDS, deadline_ms=SOON)
            assert refused.value.code == "E_FROZEN"
        assert robot.act(picture(0), WORDS, deadline_ms=SOON).fresh
        assert live.metric('edgevla_suspect_images_total{kind="frozen"}') == 4
    with running(artifact, options) as live, Robot(live.ws, "arm") as robot:
        for _ in range(4):
            assert robot.act(np.zeros_like(picture(0)), WORDS, deadline_ms=SOON).fresh
        wait_until(lambda: live.metric('edgevla_suspect_images_total{kind="black"}') == 4)
        assert live.metric('edgevla_suspect_images_total{kind="frozen"}') == 3


def test_what_a_token_has_left_grows_with_time() -> None:
    now = [0.0]
    caller = Caller(Token(TOKEN, 4), lambda: now[0])
    for _ in range(4):
        caller.spend()
    with pytest.raises(Refusal) as refused:
        caller.spend()
    assert refused.value.retry_after_s == 0.25
    now[0] += 0.25
    caller.spend()
    now[0] += 100  # no more than a second's worth is saved
    for _ in range(4):
        caller.spend()
    with pytest.raises(Refusal):
        caller.spend()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"host": "0.0.0.0"}, "--token-file"),
        ({"host": "::"}, "--token-file"),
        ({"host": "robot.local"}, "--insecure"),
        ({"zmq": "tcp://*:5555"}, "--token-file"),
        ({"tokens": (Token("short"),)}, "16"),
        ({"tokens": (Token(TOKEN), Token(TOKEN))}, "twice"),
        ({"tls_cert": Path("cert.pem")}, "--tls-key"),
    ],
)
def test_nothing_is_open_to_a_network_by_mistake(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        ServeOptions(**options).check()
    ServeOptions(host="0.0.0.0", tokens=(Token(TOKEN),)).check()
    ServeOptions(host="0.0.0.0", insecure=True).check()


def test_slow_dead_and_too_many_clients_are_cut_off(artifact: Path) -> None:
    limits = Limits(read_s=0.5, connections=8, ping_s=0.3, pong_s=0.3)
    with running(artifact, ServeOptions(port=0, serving=HostOptions(limits, valid_ms=30_000))) as live:
        starts = (b"", b"GET /healthz HT", b"POST /act HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
        for start in starts:
            with socket_to(live) as raw:
                raw.sendall(start)
                began = time.monotonic()
                assert ended(raw), start
                assert time.monotonic() - began < 3
        with socket_to(live) as raw:  # a byte at a time is no progress
            began = time.monotonic()
            with pytest.raises(OSError):  # noqa: PT012
                while time.monotonic() - began < 5:
                    raw.sendall(b"G")
                    time.sleep(0.1)
            assert time.monotonic() - began < 3
        dead = half_open(live)  # its pings are never answered
        wait_until(lambda: live.metric("edgevla_sessions") == 1)
        wait_until(lambda: live.metric("edgevla_sessions") == 0)
        dead.close()
        held = [socket_to(live) for _ in range(12)]
        wait_until(lambda: sum(closed(each) for each in held) >= 4)
        for each in held:
            each.close()
        wait_until(lambda: live_again(live))


def half_open(live: Live) -> socket.socket:
    """A WebSocket that asks once and then neither reads nor writes."""
    image = picture(0)
    message = {"type": "observation", "id": 1, "image": image.tobytes(), "shape": list(image.shape)}
    body = msgpack.packb(message | {"instruction": WORDS})
    raw = socket_to(live)
    raw.sendall(
        b"GET /v1/robot?robot=dead HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert b" 101 " in raw.recv(200)
    raw.sendall(b"\x82\xfe" + len(body).to_bytes(2, "big") + b"\0\0\0\0" + body)
    return raw


def ended(raw: socket.socket) -> bool:
    """Whether the server ends the connection, after whatever it says."""
    try:
        while raw.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


def closed(raw: socket.socket) -> bool:
    raw.setblocking(False)
    try:
        return raw.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def live_again(live: Live) -> bool:
    try:
        return live.get("/healthz")[0] == 200
    except OSError:
        return False


def test_a_deadline_on_the_device_is_kept_too(live: Live, faulty: Faulty) -> None:
    """Its refusal comes at the deadline, before the action is done, and the robot's connection lives."""
    faulty.gate = threading.Event()
    with Robot(live.ws, "arm") as robot:
        before = robot.connect()
        began = time.monotonic()
        with pytest.raises(RefusedError, match="E_DEADLINE"):
            robot.act(picture(0), WORDS, deadline_ms=1000)
        assert 0.8 < time.monotonic() - began < 1
        faulty.gate.set()
        assert robot.act(picture(1), WORDS, deadline_ms=SOON).fresh
        assert robot.connect() is before, "no second connection"
