"""Preprocessing: bit-equal to the original where goldens exist, refusing what is no image."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_vla.errors import CheckpointError, EdgeVLAWarning, FrameError
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


def preprocessor(**changes: object) -> dict[str, object]:
    """One tower's preprocessor_config.json, letterboxed, as OpenVLA's processor saves it."""
    return {
        "image_resize_strategy": "letterbox",
        "means": [[0.5, 0.5, 0.5]],
        "tvf_do_letterbox": True,
        "tvf_letterbox_fill": [127, 127, 127],
        "tvf_resize_params": [{"antialias": True, "interpolation": 3, "max_size": None, "size": 224}],
        "tvf_crop_params": [{"output_size": [224, 224]}],
        "tvf_normalize_params": [{"inplace": False, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}],
        **changes,
    }


def stretching(size: object) -> list[dict[str, object]]:
    return [{"interpolation": 3, "size": size}]


SAVED: Mapping[str, tuple[dict[str, object], ImageContract]] = {
    "as saved": ({}, LETTERBOX),
    "no transforms' sizes": ({"tvf_resize_params": [{"interpolation": 3}], "tvf_crop_params": None}, LETTERBOX),
    "fill of its own": ({"tvf_letterbox_fill": [1, 2, 3]}, replace(LETTERBOX, fill=(1, 2, 3))),
    "fill by the means": (
        {"tvf_letterbox_fill": None, "means": [[0.1, 0.2, 0.3]]},
        replace(LETTERBOX, fill=(25, 51, 76)),
    ),
    "no strategy": ({"image_resize_strategy": None}, LETTERBOX),
}


@pytest.mark.parametrize("name", SAVED)
def test_saved_transforms_decide(name: str) -> None:
    """OpenVLA's processor is built from the strategy, then the saved `tvf_*` are set over what it built."""
    changes, expected = SAVED[name]
    raw = {key: value for key, value in preprocessor(**changes).items() if value is not None}
    assert ImageContract.from_preprocessor(raw, size=224, towers=1) == expected


def test_a_strategy_that_its_transforms_contradict_is_followed_by_them_and_said() -> None:
    raw = preprocessor(tvf_do_letterbox=False, tvf_resize_params=stretching([224, 224]))
    with pytest.warns(EdgeVLAWarning, match="letterbox, its transforms stretch"):
        contract = ImageContract.from_preprocessor(raw, size=224, towers=1)
    dice = np.random.default_rng(0)
    image = Image.fromarray(dice.integers(0, 256, (100, 180, 3), dtype=np.uint8))
    stretched = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC), dtype=np.float32)
    expected = (stretched.transpose(2, 0, 1) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(preprocess(image, contract), expected, atol=1e-6)


def test_without_a_saved_fill_the_last_towers_mean_fills() -> None:
    """Upstream's loop over the towers sets it anew each time."""
    names = ("tvf_resize_params", "tvf_crop_params", "tvf_normalize_params")
    both = {name: [one, one] for name in names for one in preprocessor()[name]}  # type: ignore[attr-defined]
    raw = preprocessor(tvf_letterbox_fill=None, means=[[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]], **both)
    assert ImageContract.from_preprocessor(raw, size=224, towers=2).fill == (127, 127, 127)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tvf_resize_params": stretching(384)}, "resize to 384, expected 224"),
        ({"tvf_resize_params": stretching([224, 224])}, r"resize to \[224, 224\], expected 224"),
        ({"tvf_do_letterbox": False}, r"resize to 224, expected \[224, 224\] \(stretch"),
        ({"tvf_crop_params": [{"output_size": [200, 200]}]}, r"crop to \[200, 200\]"),
        ({"tvf_letterbox_fill": "grey"}, "malformed"),
        ({"image_resize_strategy": "resize-crop"}, "resize strategy 'resize-crop'"),
    ],
)
def test_transforms_that_end_elsewhere_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        ImageContract.from_preprocessor(preprocessor(**changes), size=224, towers=1)


@pytest.mark.parametrize(
    ("width", "height", "recorded"),
    [
        (240, 320, "dafa1a63aa7ada8c"),
        (720, 1280, "35e914a33fcbc828"),
        (100, 1000, "f7adbefa2a342d6b"),
        (48, 640, "5872e276bf662b58"),
        (640, 480, "f88f727db4e0d773"),
    ],
)
def test_an_upright_picture_is_what_the_pillow_of_training_made_of_it(width: int, height: int, recorded: str) -> None:
    """Recorded with Pillow 10.3.0; Pillow 13 resizes some of these height first, up to 17 levels away."""
    pixels = np.random.RandomState(width).randint(0, 256, (height, width, 3)).astype(np.uint8)
    contract = ImageContract(224, "resize-naive", ((0.0, 0.0, 0.0),), ((1.0, 1.0, 1.0),))
    levels = np.rint(preprocess(Image.fromarray(pixels), contract) * 255).astype(np.uint8).transpose(1, 2, 0)
    assert hashlib.sha256(levels.tobytes()).hexdigest()[:16] == recorded
