"""A server's life over real sockets: loading, TLS, a lost and a hanging device, signals, and its sudden death."""

from __future__ import annotations

import asyncio
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
from contextlib import ExitStack
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from edge_vla.errors import ArtifactError, DeviceLostError
from edge_vla.serve import lifecycle
from edge_vla.serve.client import ClientError, DisconnectedError, RefusedError, Robot
from tests.serve.core.conftest import WORDS, patient, picture, running, wait_until
from tests.serve.core.raw import Faulty, native, observe, receive

SOON = 20_000.0
SECRET = "/home/secret/weights and a stack"


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


def test_an_answer_in_two_parts_does_not_wait_for_an_acknowledgement() -> None:
    """Nagle's algorithm is off on what the server accepts: with it, REST's head and body came 40 ms apart."""

    async def use() -> int:
        accepted = asyncio.get_running_loop().create_future()

        async def meet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            option = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            writer.close()
            accepted.set_result(option)

        listener = lifecycle._listen("127.0.0.1", 0)
        async with await asyncio.start_server(meet, sock=listener):
            with socket.create_connection(listener.getsockname()):
                return int(await asyncio.wait_for(accepted, 5))

    assert asyncio.run(use())


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
        process.process.send_signal(signal.SIGSTOP)  # all of them and the signal are there when it goes on
        for number, each in enumerate(flood):
            observe(each, number)
        process.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        process.process.send_signal(signal.SIGCONT)
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


def test_sigusr1_logs_what_each_robot_saw(process: Process) -> None:
    assert process.notice().startswith("READY")
    with Robot(process.address.partition("/v1")[0], "arm") as robot:
        for _ in range(3):
            assert robot.act(picture(0), WORDS, deadline_ms=SOON).fresh
        process.process.send_signal(signal.SIGUSR1)
        assert robot.act(picture(0), WORDS, deadline_ms=SOON).fresh  # it goes on
    process.process.send_signal(signal.SIGTERM)
    said = [json.loads(line)["message"] for line in process.process.communicate(timeout=20)[1].splitlines()]
    (trace,) = [line for line in said if line.startswith("trace of 'arm'")]
    assert len(trace.partition("last [")[2].partition("]")[0].split(",")) in (3, 4)
    assert WORDS not in trace


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
