"""The form of `json-numpy` 1.0 to 2.1, as OpenVLA's `deploy.py` and its clients speak it: JSON with base64 arrays.

`{"__numpy__": base64, "dtype": "|u1", "shape": [224, 224, 3]}`; a scalar has the shape `[]`. Where a client has no
json-numpy, the body is `{"encoded": text}`, the text being the payload's JSON, and so is the reply.
"""

from __future__ import annotations

import binascii
import json
import re
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeAlias, cast

from numpy.typing import NDArray

from edge_vla.serve.codec import base64
from edge_vla.serve.codec.ndarray import array, layout
from edge_vla.serve.codec.values import CONTAINERS, Value, check_body, check_structure, kind, malformed, too_large
from edge_vla.serve.limits import Limits

MARKER: Final = "__numpy__"
COMMAS: Final = 32  # of a message whose parts are too scarce to count
DIGITS: Final = 20  # of a whole number: more than 64 bits have
BEGINNING: Final = re.compile(rb'"__numpy__"[ \t\r\n]*:[ \t\r\n]*"')
Wire: TypeAlias = dict[str, Value]


@dataclass(frozen=True)
class Request:
    """`payload` as decoded; `doubled` if it came as a text in `encoded`, and its reply must go so."""

    payload: Wire
    doubled: bool


def decode_request(body: bytes, limits: Limits) -> Request:
    payload = decode(body, limits)
    doubled = isinstance(payload, dict) and "encoded" in payload
    if isinstance(payload, dict) and doubled:
        if len(payload) != 1 or not isinstance(payload["encoded"], str):
            raise malformed("'encoded' beside other fields or not as a text", "nothing but a text in 'encoded'")
        payload = decode(_utf8(payload["encoded"]), limits)
    if not isinstance(payload, dict):
        raise malformed(kind(payload), "a map with 'image' and 'instruction'")
    return Request(payload, doubled)


def decode(body: bytes, limits: Limits) -> Value:
    """Strict JSON: UTF-8, no NaN, no key twice. Raises RefusedError, and only that."""
    check_body(body, limits)
    rest, text = _lifted(body)
    # Counted before a parser allocates: a part has its comma, or stands in one of the parser's thousand levels.
    commas = rest.count(b",")
    marks = commas + rest.count(b"[") + rest.count(b"{") if commas > COMMAS else 0
    if marks > CONTAINERS * 2:
        raise too_large(f"JSON of {marks} parts", f"at most {CONTAINERS * 2}")
    try:
        found = json.loads(
            rest.decode("utf-8"),
            object_pairs_hook=lambda pairs: _object(pairs, text, limits),
            parse_constant=_constant,
            parse_int=_whole,
        )
    except (ValueError, RecursionError):
        raise malformed(f"{len(body)} bytes that are no JSON", "UTF-8 JSON") from None
    return check_structure(cast(Value, found), limits)


def _lifted(body: bytes) -> tuple[bytes, memoryview | None]:
    """The body with an empty text in the place of its one array's, and that text, which no parser need look at.

    Only where no backslash is anywhere: then a text ends at its next quote. Else the body as it is.
    """
    found = BEGINNING.search(body)
    end = -1 if found is None else body.find(b'"', found.end())
    if found is None or end < 0 or b"\\" in body:
        return body, None
    rest = body[: found.end()] + body[end:]
    return (rest, memoryview(body)[found.end() : end]) if rest.count(MARKER.encode()) == 1 else (body, None)


def encode(values: NDArray[Any], *, compact: bool = True) -> bytes:
    """An array as `JSONResponse` writes it under json-numpy; `compact=False` with the spaces of `json_numpy.dumps`."""
    text = binascii.b2a_base64(values.tobytes(), newline=False).decode("ascii")
    shape = {MARKER: text, "dtype": values.dtype.str, "shape": values.shape}
    return json.dumps(shape, separators=(",", ":") if compact else None).encode("ascii")


def encode_reply(values: NDArray[Any], *, doubled: bool) -> bytes:
    """The body of `/act`'s reply: an array, or for a doubled request a JSON text that holds one."""
    return json.dumps(encode(values, compact=False).decode("ascii")).encode("ascii") if doubled else encode(values)


def _object(pairs: list[tuple[str, Value]], lifted: memoryview | None, limits: Limits) -> Value:
    if len(pairs) > limits.keys:
        raise too_large(f"a map of {len(pairs)} keys", f"at most {limits.keys}")
    found = dict(pairs)
    if len(found) != len(pairs):
        raise malformed("a key twice in one map", "each once")
    return _array(found, lifted, limits) if MARKER in found else found


def _array(found: Wire, lifted: memoryview | None, limits: Limits) -> NDArray[Any]:
    if found.keys() != {MARKER, "dtype", "shape"}:
        raise malformed("an array with other fields", f"'{MARKER}', 'dtype' and 'shape'")
    form, text = layout(found["dtype"], found["shape"], limits), found[MARKER]
    if not isinstance(text, str):
        raise malformed(f"{kind(text)} as an array's data", "base64 text")
    size = len(text if lifted is None else lifted)
    if size != -(-form.nbytes // 3) * 4:
        raise malformed(f"{size} base64 letters for shape {form.shape} {form.dtype}", f"{-(-form.nbytes // 3) * 4}")
    try:
        data = base64.decode(text.encode("ascii") if lifted is None else lifted)
    except ValueError:
        raise malformed("an array's text that is no base64", "base64") from None
    return array(data, form)


def _constant(name: str) -> NoReturn:
    raise malformed(f"the number {name}", "finite numbers")


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise malformed(f"a whole number of {len(text)} digits", f"at most {DIGITS}")
    return int(text)


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise malformed("a text with half a character", "UTF-8") from None
