"""OpenVLA's REST protocol over a real socket: golden bodies, refusals as problem JSON, and bodies that do not come."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import threading
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_vla.runtime import Policy
from edge_vla.serve import rest
from edge_vla.serve.limits import Limits
from tests.clients.picture import INSTRUCTION, picture
from tests.serve.conftest import KEY, DemoService, Running, golden, serving, wait_for


def ask(
    running: Running, body: bytes, method: str = "POST", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
    with contextlib.closing(connection):
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, "/act", body, {"Content-Type": "application/json", **sent})
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def array(reply: dict[str, Any]) -> NDArray[np.float64]:
    """json-numpy's form, read with nothing of ours."""
    assert reply["dtype"] == "<f8"
    return np.frombuffer(base64.b64decode(reply["__numpy__"]), "<f8").reshape(reply["shape"])


def body(image: NDArray[Any], **more: object) -> bytes:
    sent = {"__numpy__": base64.b64encode(image.tobytes()).decode(), "dtype": image.dtype.str, "shape": image.shape}
    return json.dumps({"image": sent, "instruction": INSTRUCTION, **more}).encode()


@pytest.mark.parametrize("name", ["rest", "rest-none", "rest-key", "rest-encoded"])
def test_golden_requests_are_answered_as_deploy_answers(running: Running, policy: Policy, name: str) -> None:
    status, headers, raw = ask(running, golden(f"{name}.request").read_bytes())
    assert (status, headers["content-type"]) == (200, "application/json")
    reply = json.loads(raw)
    assert isinstance(reply, str) == (name == "rest-encoded")
    found = array(json.loads(reply) if isinstance(reply, str) else reply)
    np.testing.assert_array_equal(found, policy.act(picture(), INSTRUCTION).values)


def test_freshness_stands_in_headers(running: Running) -> None:
    asked = {"X_EdgeVLA_Robot": "arm", "X_EdgeVLA_Observation_Id": "7", "X_EdgeVLA_Age_Ms": "12.5"}
    _, headers, _ = ask(running, body(picture()), X_EdgeVLA_Deadline_Ms="5000", **asked)
    assert headers["X-EdgeVLA-Robot"] == "arm"
    assert headers["X-EdgeVLA-Observation-Id"] == "7"
    assert float(headers["X-EdgeVLA-Age-Ms"]) > 12.5
    assert float(headers["X-EdgeVLA-Valid-For-Ms"]) == 200
    assert 0 < int(headers["X-EdgeVLA-Server-Recv-Ns"]) < time.monotonic_ns()
    assert headers["X-EdgeVLA-Unnorm-Key"] == KEY
    (observation,) = running.service.asked
    assert observation.deadline_ms == 5000


def test_a_robot_without_a_name_leaves_with_its_reply(running: Running) -> None:
    ask(running, body(picture()))
    ask(running, body(picture()), X_EdgeVLA_Robot="arm")
    robots = [observation.robot for observation in running.service.asked]
    assert robots[1] == "arm"
    assert running.service.left == robots[:1]


@pytest.mark.parametrize(
    ("sent", "status", "code", "words"),
    [
        (b"{", 400, "E_MALFORMED", ["JSON"]),
        (b"[]", 400, "E_MALFORMED", ["a list"]),
        (b"{}", 400, "E_MALFORMED", ["no fields", "image"]),
        (body(picture().transpose(2, 0, 1)), 422, "E_IMAGE_SHAPE", ["CHW (3, 20, 24)", "HWC"]),
        (body(picture()[..., 0]), 422, "E_IMAGE_SHAPE", ["greyscale"]),
        (body(picture()[None]), 422, "E_IMAGE_SHAPE", ["batch"]),
        (body(picture().astype("f4")), 422, "E_IMAGE_SHAPE", ["float32"]),
        (body(picture()[:0]), 422, "E_IMAGE_SHAPE", ["0"]),
        (body(np.zeros((5000, 16, 3), "u1")), 413, "E_TOO_LARGE", ["5000"]),
        (body(picture(), instruction=["a", "b"]), 422, "E_INSTRUCTION", ["a list"]),
        (body(picture(), unnorm_key=3), 400, "E_MALFORMED", ["unnorm_key"]),
        (body(picture(), unnorm_key="mars"), 422, "E_UNNORM_KEY", [KEY]),
    ],
)
def test_refusals_are_problem_json(running: Running, sent: bytes, status: int, code: str, words: list[str]) -> None:
    found, headers, raw = ask(running, sent)
    problem = json.loads(raw)
    assert (found, problem["code"], problem["status"]) == (status, code, status), problem
    assert headers["content-type"] == "application/problem+json"
    assert headers["X-EdgeVLA-Request-Id"] == problem["request_id"] != ""
    assert all(word in problem["detail"] for word in words), problem


def test_a_number_in_a_header_is_a_number(running: Running) -> None:
    status, _, _ = ask(running, body(picture()), X_EdgeVLA_Deadline_Ms="soon")
    assert status == 400


def test_other_methods_are_refused(running: Running) -> None:
    assert ask(running, b"", "GET")[0] == 405


def test_a_body_over_the_limit_is_not_read(running: Running) -> None:
    """Its length alone is enough."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/act")
        connection.putheader("Content-Length", str(200 << 20))
        connection.endheaders()
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())["code"]) == (413, "E_TOO_LARGE")


def test_a_body_over_the_limit_that_hides_its_length_is_cut_off(running: Running) -> None:
    chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as peer:
        peer.sendall(b"POST /act HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(40):
                peer.sendall(chunk)
        assert b" 413 " in peer.recv(200)


def test_a_body_that_drips_is_given_up(running: Running) -> None:
    """The fixture's server waits one second."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as peer:
        peer.sendall(b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b" 400 " in peer.recv(200)


def test_a_client_that_goes_cancels_what_it_asked(running: Running) -> None:
    running.service.hold = threading.Event()
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as peer:
        sent = body(picture())
        peer.sendall(b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(sent) + sent)
        wait_for(lambda: bool(running.service.asked))
    wait_for(lambda: running.service.cancelled == 1)
    wait_for(lambda: running.service.left == [running.service.asked[0].robot])


@pytest.mark.parametrize(
    ("sent", "status", "answer"),
    [
        (body(picture(), unnorm_key="mars"), 200, b'"error"'),
        (b'{"instruction":"x"}', 200, b'"error"'),
        (body(picture(), unnorm_key=3), 200, b'"error"'),
        (b"{", 422, None),
    ],
)
def test_exactly_as_openvla_errors_are_200(
    service: DemoService, sent: bytes, status: int, answer: bytes | None
) -> None:
    with serving(rest.routes(service, Limits(), exact=True), service) as running:
        found, headers, raw = ask(running, sent)
        assert (found, headers["content-type"]) == (status, "application/json")
        assert raw == answer if answer else "detail" in json.loads(raw)
        assert ask(running, body(picture()))[0] == 200
