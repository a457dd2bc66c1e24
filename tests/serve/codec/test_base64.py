"""Base64 by tables against the standard library's, and a JSON body whose array no parser looked at against one's."""

from __future__ import annotations

import base64 as standard
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_vla.serve.codec import base64, json_numpy
from edge_vla.serve.codec.base64 import ALPHABET, SMALL
from edge_vla.serve.limits import Limits
from edge_vla.serve.messages import Code, RefusedError

LIMITS = Limits()


def random_bytes(count: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, count, np.uint8).tobytes()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3 * SMALL), st.integers(0, 2**32))
def test_it_decodes_what_the_standard_library_encodes(count: int, seed: int) -> None:
    data = random_bytes(count, seed)
    assert bytes(base64.decode(memoryview(standard.b64encode(data)))) == data


def test_every_foreign_letter_is_refused_wherever_it_stands() -> None:
    text = bytearray(standard.b64encode(random_bytes(SMALL)))
    for letter in set(range(256)) - set(ALPHABET):
        for place in (0, 1, 2, 3, len(text) // 2, len(text) - 5):
            kept, text[place] = text[place], letter
            with pytest.raises(ValueError, match="base64"):
                base64.decode(bytes(text))
            text[place] = kept
    assert len(base64.decode(bytes(text))) == SMALL


def image_in(text: str, **more: object) -> str:
    return json.dumps({"image": {"__numpy__": text, "dtype": "|u1", "shape": [64, 64, 3]}, **more})


def code(body: str | bytes) -> Code | None:
    try:
        json_numpy.decode(body.encode() if isinstance(body, str) else body, LIMITS)
    except RefusedError as error:
        return error.code
    return None


@pytest.mark.parametrize(
    "words",
    ["lift it", 'say "__numpy__": "AAAA"', "__numpy__", "über", "back\\slash", '{"__numpy__": "', "tab\t", "[,,,]"],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_an_array_is_the_same_whatever_stands_beside_it(words: str, ascii_only: bool) -> None:
    pixels = random_bytes(64 * 64 * 3)
    array = {"__numpy__": standard.b64encode(pixels).decode(), "dtype": "|u1", "shape": [64, 64, 3]}
    for payload in ({"image": array, "instruction": words}, {"instruction": words, f"{words}!": 1, "image": array}):
        for separators in ((",", ":"), (" ,\n", " :\t ")):
            body = json.dumps(payload, ensure_ascii=ascii_only, separators=separators).encode()
            found = json_numpy.decode(body, LIMITS)
            assert isinstance(found, dict)
            image = found["image"]
            assert isinstance(image, np.ndarray)
            assert image.tobytes() == pixels
            assert found["instruction"] == words


def test_two_arrays_keep_their_own_data() -> None:
    arrays = [
        {"__numpy__": standard.b64encode(bytes([i] * 4)).decode(), "dtype": "|u1", "shape": [4]} for i in range(3)
    ]
    found = json_numpy.decode(json.dumps({"a": arrays}).encode(), LIMITS)
    assert isinstance(found, dict)
    assert [each.tolist() for each in found["a"]] == [[0] * 4, [1] * 4, [2] * 4]  # type: ignore[union-attr]


def test_what_is_no_json_or_no_base64_is_refused_with_an_array_in_it_too() -> None:
    text = standard.b64encode(random_bytes(64 * 64 * 3)).decode()
    whole = image_in(text, instruction="x")
    assert code(whole) is None
    wrong = [
        whole.replace('"dtype"', "dtype"),
        whole[:-1],
        whole + "}",
        whole.replace('{"__numpy__"', '"{"__numpy__"'),
        whole.replace(text, text[:-1]),
        whole.replace(text, "!" + text[1:]),
        whole.replace(text, text[:100] + "\n" + text[101:]),
        whole.replace(text, text[:-1] + "="),
        image_in("", instruction="x"),
        whole.replace(f'"{text}"', "7"),
        whole.replace('"dtype"', f'"__numpy__": "{text}", "dtype"'),
    ]
    assert [code(body) for body in wrong] == [Code.MALFORMED] * len(wrong)
    assert code(whole.encode().replace(text[:4].encode(), b"\xff\xfe\xfd\xfc", 1)) is Code.MALFORMED
