"""Preprocessing: bit-equal to the original where goldens exist, refusing what is no image."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_vla.errors import FrameError
from edge_vla.openvla import ImageContract, as_rgb, preprocess

HALF = ((0.5, 0.5, 0.5),)
LETTERBOX = ImageContract(224, "letterbox", HALF, HALF, (127, 127, 127))
GOLDEN = Path(__file__).parent.parent / "golden" / "letterbox.npz"


@pytest.mark.parametrize("name", ["portrait", "landscape", "square", "sliver"])
def test_letterbox_is_bit_equal(name: str) -> None:
    with np.load(GOLDEN) as golden:
        pixels = preprocess(as_rgb(golden[f"{name}/image"]), LETTERBOX)
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == str(golden[f"{name}/sha256"])


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from(["resize-naive", "letterbox"]))
def test_any_size_gives_the_contracts_shape(height: int, width: int, resize: str) -> None:
    fill = (127, 127, 127) if resize == "letterbox" else None
    contract = ImageContract(28, resize, HALF * 2, HALF * 2, fill)  # type: ignore[arg-type]
    pixels = preprocess(as_rgb(np.full((height, width, 3), 200, dtype=np.uint8)), contract)
    assert pixels.shape == (6, 28, 28)
    assert pixels.dtype == np.float32
    assert np.abs(pixels).max() <= 1


def test_grey_and_alpha_are_accepted() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    rgba = np.dstack([grey, grey, grey, np.zeros_like(grey)])
    assert np.array_equal(np.asarray(as_rgb(grey)), np.asarray(as_rgb(rgba)))


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (np.zeros((4, 4, 3), dtype=np.float32), "uint8"),
        (np.zeros((3, 8, 8), dtype=np.uint8), "transpose"),
        (np.zeros((0, 8, 3), dtype=np.uint8), "H, W"),
        (np.zeros((9, 9, 7), dtype=np.uint8), "H, W"),
        ([[1, 2], [3, 4]], "list"),
    ],
)
def test_what_is_no_image(image: object, word: str) -> None:
    with pytest.raises(FrameError, match=word):
        as_rgb(image)  # type: ignore[arg-type]


def test_pillow_images_pass_through() -> None:
    assert as_rgb(Image.new("L", (3, 2), 7)).getpixel((0, 0)) == (7, 7, 7)
