"""What a committed result says of the machine it came from."""

from __future__ import annotations

import pytest

from edge_vla.bench.provenance import without_directory


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("/home/ann/policy", "policy"),
        ("native=/home/ann/llama/bin/python", "native=python"),
        ("--out=/home/ann/x.json", "--out=x.json"),
        ("/home/ann/a=b/c", "c"),
        ("a/b=c", "a/b=c"),
        ("--rounds", "--rounds"),
    ],
)
def test_no_directory_of_anybody_is_told(word: str, shown: str) -> None:
    assert without_directory(word) == shown
