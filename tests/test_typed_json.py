"""What `asdict` writes is read back equal; what does not fit is refused by place."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Literal

import pytest

from edge_vla import typed_json


class Colour(str, Enum):
    RED = "red"


@dataclass(frozen=True)
class Part:
    size: tuple[int, int]
    colour: Colour


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    by_name: dict[str, list[float]]
    kind: Literal["a", "b"] = "a"
    note: str | None = None


WHOLE = Whole((Part((1, 2), Colour.RED),), {"x": [1.0, 2.5]}, "b", None)


def test_written_and_read_back() -> None:
    assert typed_json.from_json(Whole, json.loads(json.dumps(asdict(WHOLE)))) == WHOLE


def test_defaults_and_whole_numbers() -> None:
    assert typed_json.from_json(Whole, {"parts": [], "by_name": {"x": [1]}}) == Whole((), {"x": [1.0]})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"part": []}, r"Whole: unknown key 'part', expected \['by_name', 'kind', 'note', 'parts'\]"),
        ({"parts": [{"size": [1, 2]}]}, r"Whole\.parts\[0\]: .*colour"),
        ({"parts": [{"size": [1, 2, 3], "colour": "red"}]}, r"Whole\.parts\[0\]\.size: expected 2 values, got 3"),
        ({"parts": [{"size": [1, True], "colour": "red"}]}, r"size\[1\]: expected int, got True"),
        ({"parts": [{"size": [1, 2], "colour": "blue"}]}, "blue"),
        ({"parts": {}}, r"Whole\.parts: expected"),
        ({"by_name": {"x": ["1"]}}, r"Whole\.by_name\.x\[0\]: expected float, got '1'"),
        ({"kind": "c"}, r"Whole\.kind: expected one of \['a', 'b'\], got 'c'"),
        ({"note": 3}, r"Whole\.note: expected str, got 3"),
    ],
)
def test_what_does_not_fit_is_refused_by_place(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        typed_json.from_json(Whole, {"parts": [], "by_name": {}, **change})


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', "NaN", "[Infinity]", "[" * 100_000])
def test_json_that_readers_take_differently_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"more than once|not a JSON number|nested"):
        typed_json.parse(text)
