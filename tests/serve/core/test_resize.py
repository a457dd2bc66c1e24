"""The client's resize is the policy's own: Pillow's, bit for bit, so that the same pixels and tokens come out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge_vla.runtime import Policy
from edge_vla.serve.client import Robot
from edge_vla.serve.client.resize import resize
from tests.serve.core.conftest import WORDS, Live, Picture, picture

SIDES = st.integers(16, 700)
SOON = 20_000.0


def noise(height: int, width: int, seed: int) -> Picture:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=60)
@given(SIDES, SIDES, st.sampled_from([112, 224, 384]), st.integers(0, 99), st.booleans())
def test_it_is_pillow_s_bicubic(height: int, width: int, size: int, seed: int, hard: bool) -> None:
    image = noise(height, width, seed)
    if hard:  # black and white: weights below zero and above one must clip as Pillow clips
        image = np.where(image > 127, np.uint8(255), np.uint8(0))
    across = Image.fromarray(image).resize((size, height), Image.Resampling.BICUBIC)  # as every Pillow until 12 begins
    expected = np.asarray(across.resize((size, size), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resize(image, size), expected)


@pytest.mark.parametrize("shape", [(480, 640), (720, 1280), (64, 64), (640, 480)])
def test_the_policy_sees_the_same(live: Live, policy: Policy, shape: tuple[int, int]) -> None:
    big = np.asarray(Image.fromarray(picture(3)).resize(shape[::-1], Image.Resampling.BICUBIC))
    with Robot(live.ws, "whole") as whole, Robot(live.ws, "small", resize=True) as small:
        sent = whole.act(big, WORDS, deadline_ms=SOON)
        shrunk = small.act(big, WORDS, deadline_ms=SOON)
    expected = policy.session().act(big, WORDS)
    assert sent.tokens == shrunk.tokens == expected.tokens
    assert sent.margins == shrunk.margins == expected.margins
