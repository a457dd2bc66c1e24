"""Image messages as arrays: against Pillow, which shares no code with the reader, and for any size and padding."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_vla.errors import FrameError
from edge_vla.robot.ros2.images import RawImage, from_compressed, from_raw

RAW_MODES = {"rgb8": "RGB", "bgr8": "BGR", "rgba8": "RGBA", "bgra8": "BGRA"}  # Pillow's names of the same orders
SIDE = st.integers(16, 40)


def raw(width: int, height: int, encoding: str, padding: int, seed: int = 0, *, big: bool = False) -> RawImage:
    pixel = len(RAW_MODES.get(encoding, "L"))
    step = width * pixel + padding
    data = np.random.default_rng(seed).integers(0, 256, step * height, dtype=np.uint8).tobytes()
    return RawImage(height, width, encoding, big, step, data)


def by_pillow(image: RawImage) -> np.ndarray:
    """Rows cut by hand, then Pillow's own reading of that byte order."""
    mode = RAW_MODES[image.encoding]
    row = image.width * len(mode)
    rows = b"".join(bytes(image.data[y * image.step : y * image.step + row]) for y in range(image.height))
    size = (image.width, image.height)
    kept = "RGBA" if len(mode) == 4 else "RGB"
    return np.array(Image.frombytes(kept, size, rows, "raw", mode).convert(kept))[:, :, :3]


@given(SIDE, SIDE, st.sampled_from(sorted(RAW_MODES)), st.integers(0, 9), st.integers(0, 1000))
def test_any_order_of_colours_and_any_padding_reads_as_pillow_does(
    width: int, height: int, encoding: str, padding: int, seed: int
) -> None:
    image = raw(width, height, encoding, padding, seed)
    pixels = from_raw(image)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, by_pillow(image))


@given(SIDE, SIDE, st.integers(0, 5), st.integers(-70, 70).filter(bool))
def test_an_image_that_was_cut_or_grew_is_refused(width: int, height: int, padding: int, more: int) -> None:
    whole = raw(width, height, "rgb8", padding)
    data = bytes(whole.data)[:more] if more < 0 else bytes(whole.data) + bytes(more)
    with pytest.raises(FrameError, match=r"it was cut, or the driver's step is wrong"):
        from_raw(RawImage(height, width, "rgb8", False, whole.step, data))


@pytest.mark.parametrize("encoding", ["mono8", "mono16", "16UC1", "32FC1", "8UC1"])
def test_grey_and_depth_are_refused_with_the_reason(encoding: str) -> None:
    with pytest.raises(FrameError, match=r"grey or depth: the policy learned from colours; choose the colour topic"):
        from_raw(raw(16, 16, encoding, 0))


@pytest.mark.parametrize("encoding", ["bayer_rggb8", "yuv422", "rgb16", ""])
def test_what_would_have_to_be_guessed_is_refused(encoding: str) -> None:
    with pytest.raises(FrameError, match=r"expected rgb8, bgr8, rgba8, bgra8"):
        from_raw(raw(16, 16, encoding, 0))


def test_big_endian_is_refused() -> None:
    with pytest.raises(FrameError, match=r"big endian"):
        from_raw(raw(16, 16, "rgb8", 0, big=True))


def test_a_step_below_a_row_is_refused() -> None:
    with pytest.raises(FrameError, match=r"step is 47 bytes, but 16 pixels need 48"):
        from_raw(RawImage(16, 16, "rgb8", False, 47, bytes(47 * 16)))


@pytest.mark.parametrize(("width", "height"), [(0, 0), (15, 16), (16, 15), (4000, 3000)])
def test_a_size_that_is_no_camera_s_is_refused(width: int, height: int) -> None:
    with pytest.raises(FrameError, match=rf"{width} x {height} pixels"):
        from_raw(RawImage(height, width, "rgb8", False, 3 * width, b""))


def encoded(kind: str, mode: str = "RGB") -> tuple[bytes, np.ndarray]:
    picture = Image.fromarray(by_pillow(raw(20, 18, "rgb8", 0, 5))).convert(mode)
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue(), np.array(Image.open(io.BytesIO(file.getvalue())).convert("RGB"))


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("JPEG", "jpeg"),
        ("JPEG", "rgb8; jpeg compressed bgr8"),
        ("JPEG", "jpg"),
        ("JPEG", ""),
        ("PNG", "png"),
        ("PNG", "rgb8; png compressed "),
    ],
)
def test_a_compressed_image_reads_as_pillow_does(kind: str, form: str) -> None:
    data, expected = encoded(kind)
    np.testing.assert_array_equal(from_compressed(data, form), expected)


@pytest.mark.parametrize(
    ("data", "form", "message"),
    [
        (encoded("JPEG")[0], "png", r"says 'png', and its bytes are those of a JPEG"),
        (encoded("PNG")[0][:-40], "png", r"a PNG that cannot be read"),
        (encoded("JPEG")[0][:60], "jpeg", r"a JPEG that cannot be read"),
        (encoded("JPEG", "L")[0], "jpeg", r"jpeg in mode L, grey or depth"),
        (encoded("PNG", "I;16")[0], "png", r"png in mode I;16, grey or depth"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "webp", r"neither JPEG nor PNG"),
        (b"", "jpeg", r"neither JPEG nor PNG"),
    ],
)
def test_a_compressed_image_that_is_not_whole_or_not_colour_is_refused(data: bytes, form: str, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        from_compressed(data, form)


@given(st.binary(max_size=200), st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b""]))
def test_noise_never_reads_as_a_picture_nor_raises_anything_else(noise: bytes, sign: bytes) -> None:
    with pytest.raises(FrameError):
        from_compressed(sign + noise, "jpeg")
