"""Each wire form against the bytes that its unmodified client sent, and against what must not get through.

`golden/*.request` and `*.encoded` were written by the clients' own encoders (`python -m tests.clients --record`).
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
from PIL import Image

from edge_vla.serve.codec import gr00t, json_numpy, openpi, vla_eval
from edge_vla.serve.codec.values import CONTAINERS, ITEMS, Value
from edge_vla.serve.fields import at
from edge_vla.serve.limits import Limits
from edge_vla.serve.messages import Code, RefusedError
from tests.clients.picture import INSTRUCTION, picture
from tests.serve.conftest import golden

LIMITS = Limits()
MSGPACK = {"openpi": openpi.decode, "vla-eval": vla_eval.decode, "gr00t": gr00t.decode}
DECODERS: dict[str, Callable[[bytes, Limits], Value]] = {**MSGPACK, "json-numpy": json_numpy.decode}


@pytest.mark.parametrize("name", ["rest", "rest-none", "rest-key", "rest-encoded"])
def test_what_json_numpy_sends(name: str) -> None:
    found = json_numpy.decode_request(golden(f"{name}.request").read_bytes(), LIMITS)
    assert found.doubled == (name == "rest-encoded")
    np.testing.assert_array_equal(found.payload["image"], picture())
    assert found.payload["instruction"] == INSTRUCTION


@pytest.mark.parametrize(
    ("name", "path", "prompt"),
    [
        ("openpi-droid", "observation/exterior_image_1_left", "prompt"),
        ("openpi-libero", "observation/image", "prompt"),
        ("openpi-aloha", "images/cam_high", "prompt"),
        ("vla-eval-raw", "payload/images/agentview", "payload/task_description"),
        ("vla-eval-png", "payload/images/agentview", "payload/task_description"),
        ("gr00t-n16", "data/observation/video/image", "data/observation/language/annotation.human.task_description"),
        ("gr00t-n15", "data/video.image", "data/annotation.human.action.task_description"),
    ],
)
def test_what_msgpack_clients_send(name: str, path: str, prompt: str) -> None:
    decode = next(decode for form, decode in MSGPACK.items() if name.startswith(form))
    found = decode(golden(f"{name}.request").read_bytes(), LIMITS)
    assert isinstance(found, dict)
    image = at(found, path)
    assert isinstance(image, np.ndarray)
    image = image.transpose(1, 2, 0) if "aloha" in name else image.reshape(image.shape[-3:])
    np.testing.assert_array_equal(image, picture())
    words = at(found, prompt)
    while isinstance(words, list):
        (words,) = words
    assert words == INSTRUCTION


def test_what_vla_eval_sends_as_jpeg() -> None:
    found = vla_eval.decode(golden("vla-eval-jpeg.request").read_bytes(), LIMITS)
    assert isinstance(found, dict)
    raw = msgpack.unpackb(golden("vla-eval-jpeg.request").read_bytes())["payload"]["images"]["agentview"]["data"]
    np.testing.assert_array_equal(at(found, "payload/images/agentview"), np.asarray(Image.open(io.BytesIO(raw))))


def test_a_scalar_of_openpis_is_a_number() -> None:
    found = openpi.decode(golden("openpi-aloha.request").read_bytes(), LIMITS)
    assert isinstance(found, dict)
    assert found["episode"] == 1.0


def _action(name: str) -> np.ndarray[Any, Any]:
    """The action in a golden reply, read with nothing of ours."""
    raw = golden(name).read_bytes()
    if name == "rest.encoded":
        return np.frombuffer(base64.b64decode(json.loads(raw)["__numpy__"]), "<f8")
    return np.frombuffer(msgpack.unpackb(raw)["payload"]["actions"]["data"], "<f8")


def test_json_numpy_is_written_as_its_authors_write_it() -> None:
    action = _action("rest.encoded")
    assert json_numpy.encode_reply(action, doubled=False) == golden("rest.encoded").read_bytes()
    assert json_numpy.encode_reply(action, doubled=True) == golden("rest-encoded.encoded").read_bytes()
    np.testing.assert_array_equal(json_numpy.decode(golden("rest.encoded").read_bytes(), LIMITS), action)


def test_msgpack_forms_are_written_as_their_authors_write_them() -> None:
    action = _action("rest.encoded")
    openpis = {"actions": action[None], "a": np.float32(0.5), "b": {"c": [1, "x", None]}}
    assert openpi.encode(openpis) == golden("openpi.encoded").read_bytes()
    evals = {"type": "action", "payload": {"actions": action}, "seq": 4, "timestamp": 2.5}
    assert vla_eval.encode(evals) == golden("vla-eval.encoded").read_bytes()
    modality = gr00t.ModalityConfig([0], ["x"])
    flat = {"action.x": action[:1, None], "m": modality}
    assert gr00t.encode(flat, "n1.5") == golden("gr00t-n15.encoded").read_bytes()
    nested = [{"x": action[:1, None, None]}, {"m": modality}]
    assert gr00t.encode(nested, "n1.6") == golden("gr00t-n16.encoded").read_bytes()


@pytest.mark.parametrize("name", ["gr00t-n15", "gr00t-n16"])
def test_either_form_of_a_modality_is_read(name: str) -> None:
    found = gr00t.decode(golden(f"{name}.encoded").read_bytes(), LIMITS)
    modality = found[1] if isinstance(found, list) else found
    assert isinstance(modality, dict)
    assert isinstance(modality["m"], dict)
    assert modality["m"]["modality_keys"] == ["x"]


@pytest.mark.parametrize("value", [object(), np.array([None]), np.zeros(1, "c8"), {1, 2}])
@pytest.mark.parametrize("encode", [openpi.encode, vla_eval.encode, gr00t.encode])
def test_what_has_no_form_is_not_written(encode: Callable[[object], bytes], value: object) -> None:
    with pytest.raises(TypeError):
        encode({"a": value})


def refusal(form: str, body: bytes) -> RefusedError:
    with pytest.raises(RefusedError) as refused:
        DECODERS[form](body, LIMITS)
    return refused.value


def _nested(levels: int, form: str) -> bytes:
    return b"[" * levels + b"1" + b"]" * levels if form == "json-numpy" else b"\x91" * levels + b"\x01"


def _packed(form: str, value: object) -> bytes:
    return json.dumps(value).encode() if form == "json-numpy" else msgpack.packb(value)


@pytest.mark.parametrize("form", DECODERS)
def test_depth_keys_items_and_size_are_bounded(form: str) -> None:
    decode = DECODERS[form]
    assert decode(_nested(16, form), LIMITS) is not None
    assert refusal(form, _nested(17, form)).code is Code.TOO_LARGE
    refusal(form, _nested(100_000, form))
    keys = {f"key {index}": 1 for index in range(65)}
    refusal(form, _packed(form, keys))
    assert decode(_packed(form, dict(list(keys.items())[:64])), LIMITS) is not None
    refusal(form, _packed(form, [[[]] * ITEMS] * (CONTAINERS // ITEMS + 3)))
    assert refusal(form, b"\x00" * (LIMITS.body + 1)).code is Code.TOO_LARGE


@pytest.mark.parametrize("form", DECODERS)
def test_a_key_twice_is_refused(form: str) -> None:
    body = b'{"a":1,"a":2}' if form == "json-numpy" else b"\x82\xa1a\x01\xa1a\x02"
    assert "twice" in refusal(form, body).detail


@pytest.mark.parametrize("form", MSGPACK)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x93\x01",
        b"\x01\x02",
        b"\xa1\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x81\x91\x01\x01",  # a list as a key
        b"\x81\x01\x01",  # a number as a key
        msgpack.packb(msgpack.ExtType(5, b"x")),
        msgpack.packb(msgpack.Timestamp(1)),
    ],
)
def test_what_is_no_msgpack_is_refused(form: str, body: bytes) -> None:
    assert refusal(form, body).code in (Code.MALFORMED, Code.TOO_LARGE)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        '{"a":1}'.encode("utf-16"),
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"__numpy__":"AA==","dtype":"|u1","shape":[1],"more":1}',
        b'{"__numpy__":"AAA=","dtype":"|u1","shape":[1]}',
        b'{"__numpy__":"!A==","dtype":"|u1","shape":[1]}',
        b'{"__numpy__":[0],"dtype":"|u1","shape":[1]}',
        '{"__numpy__":"ÄÄ==","dtype":"|u1","shape":[1]}'.encode(),
    ],
)
def test_what_is_no_json_numpy_is_refused(body: bytes) -> None:
    assert refusal("json-numpy", body).code is Code.MALFORMED


@pytest.mark.parametrize(
    "body",
    [b"[]", b'"x"', b'{"encoded":1}', b'{"encoded":"{}","image":1}', b'{"encoded":"[]"}', b'{"encoded":"\\ud800"}'],
)
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(RefusedError):
        json_numpy.decode_request(body, LIMITS)


def _picture_of(width: int, height: int, mode: str = "RGB", form: str = "PNG") -> bytes:
    written = io.BytesIO()
    Image.new(mode, (width, height)).save(written, format=form)
    return written.getvalue()


def _image_message(data: bytes, shape: list[int], form: str = "png") -> bytes:
    body: bytes = msgpack.packb({"a": {"__image__": True, "format": form, "data": data, "shape": shape}})
    return body


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (_image_message(_picture_of(20, 16), [16, 20, 4]), Code.IMAGE_SHAPE),
        (_image_message(_picture_of(20, 16, "L"), [16, 20, 1]), Code.IMAGE_SHAPE),
        (_image_message(_picture_of(20, 16), [16, 20, 3], "jpeg"), Code.MALFORMED),
        (_image_message(_picture_of(20, 16), [16, 20, 3], "gif"), Code.MALFORMED),
        (_image_message(_picture_of(20, 16)[:-30], [16, 20, 3]), Code.MALFORMED),
        (_image_message(b"", [16, 20, 3]), Code.MALFORMED),
        (_image_message(_picture_of(5000, 20), [20, 5000, 3]), Code.TOO_LARGE),
        (_image_message(_picture_of(4000, 4000), [4000, 4000, 3]), Code.TOO_LARGE),
        (msgpack.packb([msgpack.unpackb(_image_message(_picture_of(20, 16), [16, 20, 3]))] * 5), Code.TOO_LARGE),
    ],
)
def test_pictures_are_measured_before_they_are_decoded(body: bytes, code: Code) -> None:
    assert refusal("vla-eval", body).code is code


@pytest.mark.parametrize(
    ("data", "dtype"), [(300, "|u1"), (-1, "<u4"), (1.5, "<i4"), ("x", "<f4"), (True, "<i4"), (1, "|b1"), (1, "|O")]
)
def test_a_scalar_fits_its_dtype(data: object, dtype: str) -> None:
    refusal("openpi", msgpack.packb({"a": {b"__npgeneric__": True, b"data": data, b"dtype": dtype}}))


@pytest.mark.parametrize(
    ("form", "body"),
    [
        ("json-numpy", b"[" + b"{}," * (5 << 20) + b"{}]"),
        ("json-numpy", b",".join([b"[" * 900 + b"]" * 900] * 30)),
        ("json-numpy", b"[" + b",".join([b"[" * 900 + b"]" * 900] * 30) + b"]"),
        ("json-numpy", b'{"a":"' + b"x" * (15 << 20) + b'"}'),
        ("openpi", b"\xdd\x00\xff\xff\xff" + b"\x80" * (15 << 20)),
        ("vla-eval", b"\xdc\x04\x00" * 5_000 + b"\x00" * (15 << 20)),
        ("gr00t", b"\xdc\x04\x00" + (b"\xdc\x04\x00" + b"\x80" * 1024) * 1024),
    ],
)
def test_a_large_message_costs_no_multiple_of_itself(form: str, body: bytes) -> None:
    """At most three times its size, whatever it holds."""
    tracemalloc.start()
    try:
        with contextlib.suppress(RefusedError):
            DECODERS[form](body, LIMITS)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 3 * LIMITS.body
