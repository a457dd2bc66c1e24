"""The server under what goes wrong: strangers, floods, slow and dead clients, a failing engine, and its own end."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from edge_vla.errors import ArtifactError, DeviceLostError, NumericError, UsageError
from edge_vla.openvla.statistics import ActionStatistics
from edge_vla.runtime.types import Decision
from edge_vla.serve.client import ClientError, DisconnectedError, RefusedError, Robot
from edge_vla.serve.host import HostOptions
from edge_vla.serve.lifecycle import ServeOptions
from edge_vla.serve.limits import Limits
from edge_vla.serve.logs import JsonLines
from tests.serve.core.conftest import WORDS, Live, patient, picture, running, wait_until

SOON = 20_000.0
TOKEN = "0123456789abcdef0123456789abcdef"
SECRET = "/home/secret/weights and a stack"


class Faulty:
    """The server's own engine, but for what a test makes of its next decisions."""

    def __init__(self, live: Live) -> None:
        self.engine = live.policy.engine
        self.fault: BaseException | Decision | None = None
        self.gate: threading.Event | None = None
        self.entered = threading.Event()
        self.decisions = 0
        live.policy.engine = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def decide(self, *arguments: Any, **options: Any) -> Decision:
        self.decisions += 1
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(20)
        if isinstance(self.fault, BaseException):
            raise self.fault
        return self.fault or self.engine.decide(*arguments, **options)


@pytest.fixture
def faulty(live: Live) -> Iterator[Faulty]:
    fault = Faulty(live)
    yield fault
    live.policy.engine = fault.engine


def observe(socket: ClientConnection, number: int, **change: Any) -> None:
    image = picture(0)
    message = {"type": "observation", "id": number, "image": image.tobytes(), "shape": list(image.shape)}
    socket.send(msgpack.packb(message | {"instruction": WORDS} | change))


def receive(socket: ClientConnection, timeout: float = 20) -> dict[str, Any]:
    found: dict[str, Any] = msgpack.unpackb(socket.recv(timeout))
    return found


@contextmanager
def native(live: Live, robot: str = "raw", **options: Any) -> Iterator[ClientConnection]:
    with connect(f"{live.ws}/v1/robot?robot={robot}", compression=None, proxy=None, **options) as found:
        assert receive(found)["type"] == "hello"
        yield found


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


def socket_to(live: Live) -> socket.socket:
    return socket.create_connection(("127.0.0.1", live.port), timeout=10)


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
    with running(artifact, patient(token=TOKEN)) as live:
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


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"host": "0.0.0.0"}, "--token-file"),
        ({"host": "::"}, "--token-file"),
        ({"host": "robot.local"}, "--insecure"),
        ({"zmq": "tcp://*:5555"}, "--token-file"),
        ({"token": "short"}, "16"),
        ({"tls_cert": Path("cert.pem")}, "--tls-key"),
    ],
)
def test_nothing_is_open_to_a_network_by_mistake(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        ServeOptions(**options).check()
    ServeOptions(host="0.0.0.0", token=TOKEN).check()
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


def test_a_server_that_loads_is_alive_and_not_ready(artifact: Path) -> None:
    with running(artifact, wait=False) as live:
        assert live.get("/healthz")[0] == 200
        status, body = live.get("/readyz")
        progress = json.loads(body)
        assert (status, progress["status"]) == (503, "loading")
        assert 0 <= progress["fraction"] < 1
        assert live.get("/metadata")[0] == 503
        with pytest.raises(RefusedError, match="E_NOT_READY"):
            Robot(live.ws, "arm").connect()
        wait_until(lambda: live.get("/readyz")[0] == 200, 60)
        assert list(dict.fromkeys(live.stages)) == ["verify", "load", "warm", "golden", "measure"]


def test_a_damaged_artifact_ends_the_server(artifact: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    subprocess.run(["cp", "-r", str(artifact), str(damaged)], check=True)
    head = damaged / "head.safetensors"
    content = bytearray(head.read_bytes())
    content[-1] ^= 1
    head.write_bytes(content)
    with running(damaged, wait=False) as live:
        assert live.ended.wait(30)
    assert isinstance(live.error, ArtifactError)


def test_a_lost_device_is_not_ready_in_a_second_and_ends_with_an_error(artifact: Path) -> None:
    with running(artifact) as live:
        faulty = Faulty(live)
        faulty.gate, faulty.fault = threading.Event(), DeviceLostError(f"CUDA error: {SECRET}")
        with native(live, "first") as first, native(live, "second") as second:
            observe(first, 1)
            assert faulty.entered.wait(10)
            observe(second, 2)
            wait_until(lambda: live.metric("edgevla_queue_depth") == 1)
            began = time.monotonic()
            faulty.gate.set()
            said = [receive(first), receive(second)]
            assert time.monotonic() - began < 1
            assert [each["code"] for each in said] == ["E_ENGINE", "E_SHUTTING_DOWN"]
            assert "secret" not in str(said)
            with pytest.raises(ConnectionClosed) as closing:
                second.recv(5)
            assert closing.value.rcvd is not None
            assert closing.value.rcvd.code == 1001
        assert live.ended.wait(5)
    assert isinstance(live.error, DeviceLostError)
    assert live.error.exit_code != 0


def test_a_device_that_hangs_ends_the_server(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_vla.serve.host.STALL_S", 0.3)
    with running(artifact) as live:
        faulty = Faulty(live)
        faulty.gate = threading.Event()
        with native(live) as socket:
            observe(socket, 1)
            assert faulty.entered.wait(10)
            wait_until(lambda: live.ended.is_set() or live.get("/readyz")[0] == 503, 10)
            assert live.ended.wait(10)
        faulty.gate.set()
    assert isinstance(live.error, DeviceLostError)
    assert "does not come back" in str(live.error)


def test_tls(artifact: Path, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(made, check=True, capture_output=True)
    context = ssl.create_default_context(cafile=str(cert))
    with running(artifact, patient(tls_cert=cert, tls_key=key)) as live:
        with Robot(f"wss://127.0.0.1:{live.port}", "arm", ssl_context=context) as robot:
            assert robot.act(picture(0), WORDS, deadline_ms=SOON).fresh
        with pytest.raises(DisconnectedError):
            Robot(f"wss://127.0.0.1:{live.port}", "arm").connect()


class Process:
    """`edge-vla serve` as a process under a supervisor."""

    def __init__(self, artifact: Path, tmp_path: Path, *options: str) -> None:
        self.notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notices.bind(str(tmp_path / "notify"))
        self.notices.settimeout(60)
        arguments = [str(artifact), "--port", "0", "--valid-for-ms", "30000", *options]
        environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "900000"}
        command = [sys.executable, "-m", "edge_vla.cli", "serve", *arguments]
        self.process = subprocess.Popen(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[1]

    def notice(self) -> str:
        return self.notices.recv(200).decode()

    def end(self) -> None:
        self.notices.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=10)


@pytest.fixture
def process(artifact: Path, tmp_path: Path) -> Iterator[Process]:
    found = Process(artifact, tmp_path, "--log-format", "json")
    yield found
    found.end()


def test_sigterm_drains(process: Process) -> None:
    assert process.notice() == "READY=1\nSTATUS=ready"
    assert process.notice() == "WATCHDOG=1"
    with ExitStack() as sockets:
        addresses = [f"{process.address}?robot={i}" for i in range(8)]
        flood = [sockets.enter_context(connect(each, compression=None, proxy=None)) for each in addresses]
        assert all(receive(each)["type"] == "hello" for each in flood)
        for number, each in enumerate(flood):
            observe(each, number)
        began = time.monotonic()
        process.process.send_signal(signal.SIGTERM)
        said = [receive(each) for each in flood]
        kinds = [each.get("code", each["type"]) for each in said]
        assert set(kinds) <= {"action", "E_SHUTTING_DOWN"}
        assert "E_SHUTTING_DOWN" in kinds
        for each in flood:
            with pytest.raises(ConnectionClosed) as closing:
                each.recv(5)
            assert closing.value.rcvd is not None
            assert closing.value.rcvd.code == 1001
    assert process.process.wait(5) == 0
    assert time.monotonic() - began < 5
    notices = [process.notice()]
    while notices[-1] == "WATCHDOG=1":
        notices.append(process.notice())
    assert notices[-1] == "STOPPING=1"
    with pytest.raises((OSError, ClientError)):
        Robot(process.address.partition("/v1")[0], "late").connect()


def test_sigterm_while_loading_ends_at_once(artifact: Path, tmp_path: Path) -> None:
    process = Process(artifact, tmp_path)
    try:
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(5) == 0
    finally:
        process.end()


def test_a_killed_server_is_an_error_to_its_robots(process: Process) -> None:
    assert process.notice().startswith("READY")
    with Robot(process.address.partition("/v1")[0], "arm") as robot:
        assert robot.act(picture(0), WORDS, deadline_ms=SOON).fresh
        process.process.kill()
        process.process.wait()
        for _ in range(2):
            with pytest.raises(ClientError):
                robot.act(picture(0), WORDS, deadline_ms=500)


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
