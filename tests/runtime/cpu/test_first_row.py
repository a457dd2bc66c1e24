"""The row of beginning-of-sequence is computed once, at load, and no bit of an action tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_vla.runtime import load
from edge_vla.runtime.cpu.native.library import library
from edge_vla.runtime.engine import StagedEngine
from edge_vla.runtime.types import Decision

pytestmark = pytest.mark.skipif(library() is None, reason="no C library here")
DIMS, DRAFT = 7, [3, 9, 27, 1, 0, 5, 8]


def engines(directory: Path, kernel: str) -> tuple[StagedEngine, StagedEngine]:
    """One that begins after the first row, and one on the same weights that computes every row."""
    once = load(directory, "cpu", kernel=kernel, check=False).engine
    assert isinstance(once, StagedEngine)
    return once, StagedEngine(replace(once.network, first_token=None))


def pixels(engine: StagedEngine, seed: int) -> NDArray[np.float32]:
    spec = engine.network.spec
    shape = (3 * len(spec.towers), spec.image_size, spec.image_size)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("bits", "kernel"), [(16, "native"), (8, "native"), (8, "native/int8"), (4, "native/int8")])
def test_no_bit_tells(bits: int, kernel: str, tiny_artifacts: Mapping[int, Path]) -> None:
    """Also where a prefill's rows are int8, with drafts, and when prompts grow in between."""
    once, always = engines(tiny_artifacts[bits], kernel)
    bos = once.network.first_token
    assert bos == once.network.spec.decoder.bos
    for seed, further in enumerate([(5, 9), (7, 300, 21, *range(40)), (5,)]):
        image, prompt = pixels(once, seed), (bos, *further)
        plain, drafted = (
            [engine.decide(prompt, image, DIMS, draft) for engine in (once, always)]
            for draft in (None, lambda known, guesses: DRAFT)
        )
        assert_same(*plain)
        assert_same(*drafted)
        tokens = plain[0].tokens
        embedded = once.network.vision(torch.from_numpy(image)[None]).clone()
        assert torch.equal(*(engine.forced(prompt, embedded, tokens) for engine in (once, always)))


def assert_same(one: Decision, other: Decision) -> None:
    assert one == other
    assert all(map(np.isfinite, one.margins))


def test_a_prefill_has_a_row_less(tiny_artifacts: Mapping[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    once, always = engines(tiny_artifacts[4], "native")
    passes, rows = list[tuple[int, int]](), type(once.network.decoder).rows

    def spy(decoder: object, x: Tensor, start: int, *rest: object) -> Tensor:
        passes.append((start, x.shape[1]))
        return rows(decoder, x, start, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(type(once.network.decoder), "rows", spy)
    for engine in (once, always):
        engine.decide((1, 5, 9), pixels(engine, 0), DIMS)
    assert passes == [(1, 15), (0, 16)]


def test_another_first_token_is_computed_whole(tiny_artifacts: Mapping[int, Path]) -> None:
    """And what it leaves in the cache is not taken for the first row of the next prompt."""
    once, always = engines(tiny_artifacts[4], "native")
    found = [
        [engine.decide((first, 5, 9), pixels(engine, 0), DIMS) for first in (1, 7, 1)] for engine in (once, always)
    ]
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]
    assert found[0][0] == found[0][2]
