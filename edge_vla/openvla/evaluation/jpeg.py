"""`tf.image.encode_jpeg` and `tf.io.decode_image`, one after the other: bit for bit TensorFlow's.

TensorFlow writes quality 95 with halved chroma, and so does Pillow, byte for byte. It reads with libjpeg's fast inverse
transform and its smooth chroma upsampling, a pair that Pillow has no setting for: Pillow's draft decoder gives the fast
transform and repeats chroma, so the smooth upsampling and the conversion to RGB are done here, in libjpeg's integers.
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

Numbers = NDArray[np.int32]

QUALITY: Final = 95
DRAFT: Final = (1, 1)  # full size; libjpeg's fast inverse transform and repeated chroma
BITS: Final = 16  # after the binary point of libjpeg's conversion
HALF: Final = 1 << (BITS - 1)
RED, GREEN_OF_BLUE, GREEN_OF_RED, BLUE = (
    int(factor * (1 << BITS) + 0.5) for factor in (1.402, 0.34414, 0.71414, 1.772)
)


def jpeg_round_trip(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) RGB, uint8 in and out."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=QUALITY, subsampling="4:2:0")
    file.seek(0)
    planes = _draft(file)
    luma, (blue, red) = (
        planes[..., 0],
        (_upsampled(planes[::2, ::2, i])[: len(image), : image.shape[1]] for i in (1, 2)),
    )
    return _rgb(luma, blue, red)


def _draft(file: io.BytesIO) -> Numbers:
    """Y, Cb and Cr (H, W, 3), each chroma repeated twice along both axes."""
    with JpegImageFile(file) as image:
        image.draft("YCbCr", image.size)
        image.decoderconfig = DRAFT
        return np.asarray(image).astype(np.int32)


def _upsampled(chroma: Numbers) -> Numbers:
    """(h, w) -> (2 h, 2 w), each from its four nearest, 9 : 3 : 3 : 1. libjpeg repeats where there are two columns."""
    height, width = chroma.shape
    if width <= 2:
        return chroma.repeat(2, axis=0).repeat(2, axis=1)
    above, below = np.vstack([chroma[:1], chroma[:-1]]), np.vstack([chroma[1:], chroma[-1:]])
    rows = np.stack([3 * chroma + above, 3 * chroma + below], axis=1).reshape(2 * height, width)
    left, right = np.hstack([rows[:, :1], rows[:, :-1]]), np.hstack([rows[:, 1:], rows[:, -1:]])
    return np.stack([(3 * rows + left + 8) >> 4, (3 * rows + right + 7) >> 4], axis=2).reshape(2 * height, 2 * width)


def _rgb(luma: Numbers, blue: Numbers, red: Numbers) -> NDArray[np.uint8]:
    blue, red = blue - 128, red - 128
    channels = [
        luma + ((RED * red + HALF) >> BITS),
        luma + ((HALF - GREEN_OF_BLUE * blue - GREEN_OF_RED * red) >> BITS),
        luma + ((BLUE * blue + HALF) >> BITS),
    ]
    levels: NDArray[np.uint8] = np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8)
    return levels
