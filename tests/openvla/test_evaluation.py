"""What evaluation scripts do to images: bit for bit what their own functions gave, and the laws of each step."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from edge_vla.errors import UsageError
from edge_vla.openvla import ImageContract, as_rgb, preprocess
from edge_vla.openvla.evaluation import SCRIPTS, Preprocess, area, crop, described, lanczos, pixels, prepare
from edge_vla.openvla.evaluation.jpeg import jpeg_round_trip
from tests.golden.make_evaluation_images import SHAPES, SIZE
from tests.golden.seeded import seeded_picture

GOLDEN: Final = Path(__file__).parent.parent / "golden" / "evaluation_images.npz"
HALF: Final = ((0.5, 0.5, 0.5),)
CONTRACTS: Final = [
    ImageContract(28, "resize-naive", HALF * 2, HALF * 2),
    ImageContract(28, "letterbox", HALF, HALF, (127, 127, 127)),
]
STEPS: Final[Mapping[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]]] = {
    "jpeg": jpeg_round_trip,
    "lanczos3": lambda image: lanczos.lanczos3_resize(image, SIZE),
    "crop": lambda image: crop.centre_crop(image, SIZE),
}
sides = st.integers(1, 70)


def digest(levels: NDArray[np.uint8]) -> str:
    return hashlib.sha256(np.ascontiguousarray(levels).tobytes()).hexdigest()


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("script", ["libero", "simpler"])
def test_a_script_is_bit_equal_to_its_authors_functions(script: Preprocess, name: str) -> None:
    levels = seeded_picture(name, *SHAPES[name])
    with np.load(GOLDEN) as golden:
        assert digest(levels) == str(golden[f"{name}/input"]), "the picture is another"
        found = np.asarray(prepare(Image.fromarray(levels), script, SIZE))
        assert np.array_equal(found[::16, ::16], golden[f"{name}/{script}/sample"])
        assert digest(found) == str(golden[f"{name}/{script}"])


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_bit_equal_to_tensorflows(step: str, name: str) -> None:
    with np.load(GOLDEN) as golden:
        assert digest(STEPS[step](seeded_picture(name, *SHAPES[name]))) == str(golden[f"{name}/{step}"])


@given(sides, sides)
def test_none_is_the_identity(height: int, width: int) -> None:
    image = noise(height, width)
    assert prepare(image, "none", 28) is image
    for contract in CONTRACTS:
        assert np.array_equal(pixels(image, "none", contract), preprocess(as_rgb(image), contract))


@given(sides, sides, st.sampled_from(list(SCRIPTS)))
def test_a_script_gives_the_policys_size_and_levels(height: int, width: int, name: Preprocess) -> None:
    image = noise(height, width)
    found = prepare(image, name, 28)
    assert found.mode == "RGB"
    assert found.size == ((width, height) if name == "none" else (28, 28))
    assert np.array_equal(np.asarray(image), np.asarray(noise(height, width))), "the caller's image was changed"


@given(sides, sides)
def test_libero_turns_and_upright_does_not(height: int, width: int) -> None:
    image = noise(height, width)
    turned = prepare(image.transpose(Image.Transpose.ROTATE_180), "libero", 28)
    assert np.array_equal(np.asarray(turned), np.asarray(prepare(image, "libero-upright", 28)))


def test_an_image_of_the_policys_size_keeps_its_pixels_where_a_script_only_resizes() -> None:
    image = noise(28, 28)
    assert np.array_equal(np.asarray(prepare(image, "simpler", 28)), np.asarray(image))
    assert lanczos.lanczos3_resize(np.asarray(image), 28).tolist() == np.asarray(image).tolist()
    cropped = np.asarray(prepare(image, "libero-upright", 28))
    expected = crop.centre_crop(jpeg_round_trip(np.asarray(image)), 28)
    assert np.array_equal(cropped, expected)


@given(sides, sides, st.tuples(*[st.integers(0, 255)] * 3))
def test_one_colour_stays_that_colour(height: int, width: int, colour: tuple[int, int, int]) -> None:
    flat = np.full((height, width, 3), colour, np.uint8)
    for found in (lanczos.lanczos3_resize(flat, 28), crop.centre_crop(flat, 28), area.area_resize(flat, 28)):
        assert (found == colour).all()
    assert np.abs(jpeg_round_trip(flat).astype(int) - colour).max() <= 3  # the rounding of YCbCr and of DC terms


@given(st.integers(1, 900), st.integers(1, 300))
def test_weights_add_up_to_one(old: int, new: int) -> None:
    assert np.abs(lanczos.taps(old, new).weights.sum(axis=1) - 1).max() < 1e-6
    if old >= new:
        assert np.abs(area.taps(old, new).weights.sum(axis=1) - 1).max() < 2e-3  # slivers under 0.001 are left out


@given(st.floats(0, 9.5, width=32))
def test_the_sine_is_within_a_unit_in_the_last_place(angle: float) -> None:
    found = float(lanczos.sinf(np.array([angle], np.float32))[0])
    assert abs(found - math.sin(angle)) <= max(np.spacing(np.float32(abs(math.sin(angle)))), 1e-30)


def test_the_table_holds_every_name_and_describes_it() -> None:
    assert tuple(SCRIPTS) == get_args(Preprocess)
    assert described("none") == "preprocess none: images as they come"
    assert described("libero") == (
        "preprocess libero: turn by 180°, JPEG and back, lanczos3 resize, crop to the middle 90 % of the area"
    )
    with pytest.raises(UsageError, match="--preprocess LIBERO: choose one of none, libero, libero-upright, simpler"):
        described("LIBERO")
