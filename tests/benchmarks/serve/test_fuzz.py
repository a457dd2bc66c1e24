"""A few thousand fuzzed messages of each wire form; the study sends more than 100 000."""

from __future__ import annotations

import random

import pytest

from benchmarks.serve import fuzz
from edge_vla.serve.messages import RefusedError


@pytest.mark.parametrize("form", fuzz.FORMS)
def test_whatever_comes_is_a_value_or_a_refusal(form: str) -> None:
    found = fuzz.fuzz(form, 2_000, 7)
    assert found.crashes == []
    assert found.accepted + sum(found.refused.values()) == found.messages
    assert found.accepted > 0, "some mutations are harmless"
    assert found.distinct_refusals > 15, "the messages reach many checks"


@pytest.mark.parametrize("form", fuzz.FORMS)
def test_the_seeds_are_sound(form: str) -> None:
    """Without them only the first checks would be met."""
    sound = 0
    for body in fuzz.seeds(form):
        try:
            fuzz.FORMS[form](body)
        except RefusedError:
            continue
        sound += 1
    assert sound >= 1


def test_a_crash_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(body: bytes) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(fuzz.FORMS, "openpi", broken)
    assert "ZeroDivisionError" in fuzz.fuzz("openpi", 3, 1).crashes[0]


def test_the_same_seed_sends_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    first, again = (list(fuzz.messages("gr00t", 50, random.Random(1), fuzz.seeds("gr00t"))) for _ in range(2))
    assert first == again
