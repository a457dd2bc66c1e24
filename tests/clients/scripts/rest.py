"""`requests` with `json-numpy` patched in, as OpenVLA's README tells its users to ask `deploy.py`."""

import json

import json_numpy
import numpy as np
import requests
from common import ACTION, INSTRUCTION, KEY, SETTINGS, check, finish, image, record, same

URL = SETTINGS["http"] + "/act"
PAYLOAD = {"image": image(), "instruction": INSTRUCTION}


def double() -> None:
    response = requests.post(URL, json={"encoded": json_numpy.dumps(PAYLOAD)}, timeout=20)
    record("rest-encoded.request", response.request.body)
    same(json_numpy.loads(response.json()))


def plain(name: str = "rest.request", **more: object) -> None:
    response = requests.post(URL, json={**PAYLOAD, **more}, timeout=20)
    record(name, response.request.body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    same(response.json())


def unpatched() -> None:
    found = requests.post(URL, data=json_numpy.dumps(PAYLOAD), headers={"Content-Type": "application/json"}, timeout=20)
    assert set(json.loads(found.text)) >= {"__numpy__", "dtype", "shape"} or isinstance(found.json(), np.ndarray)


def freshness() -> None:
    headers = {"X-EdgeVLA-Robot": "arm-1", "X-EdgeVLA-Observation-Id": "7", "X-EdgeVLA-Age-Ms": "5"}
    found = requests.post(URL, json=PAYLOAD, headers=headers, timeout=20).headers
    assert found["X-EdgeVLA-Robot"] == "arm-1"
    assert found["X-EdgeVLA-Observation-Id"] == "7"
    assert float(found["X-EdgeVLA-Age-Ms"]) >= 5
    assert float(found["X-EdgeVLA-Valid-For-Ms"]) > 0


def refused(payload: object, status: int, code: str, *words: str) -> None:
    response = requests.post(URL, json=payload, timeout=20)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert not isinstance(problem, np.ndarray)
    assert problem["code"] == code, problem
    assert problem["request_id"], problem
    assert all(word in problem["detail"] for word in words), problem


check("double-encoded before the patch", double)
json_numpy.patch()
check("plain", plain)
check("unnorm_key None", lambda: plain("rest-none.request", unnorm_key=None))
check("unnorm_key known", lambda: plain("rest-key.request", unnorm_key=KEY))
check("unnorm_key unknown", lambda: refused({**PAYLOAD, "unnorm_key": "mars"}, 422, "E_UNNORM_KEY", KEY))
check("CHW image", lambda: refused({**PAYLOAD, "image": image().transpose(2, 0, 1)}, 422, "E_IMAGE_SHAPE", "CHW"))
check("float image", lambda: refused({**PAYLOAD, "image": image() / 255}, 422, "E_IMAGE_SHAPE", "float64"))
check("no image", lambda: refused({"instruction": INSTRUCTION}, 400, "E_MALFORMED", "image"))
check("complex array", lambda: refused({**PAYLOAD, "image": image() * 1j}, 400, "E_MALFORMED", "dtype"))
check("text sent as JSON", unpatched)
check("freshness in headers", freshness)
record("rest.encoded", json.dumps(ACTION, separators=(",", ":")).encode())
record("rest-encoded.encoded", json.dumps(json_numpy.dumps(ACTION)).encode())
finish()
