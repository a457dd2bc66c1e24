"""`tf.image.resize(method="lanczos3", antialias=True)`, rounded to levels: bit for bit TensorFlow's on x86-64 Linux.

Weights are TensorFlow's float32 arithmetic down to the C library's `sinf`, which is not correctly rounded: one weight
that is off by a bit moves a pixel of a smooth image where two levels tie.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_vla.openvla.evaluation.resampling import Taps, along_columns, along_rows, packed, rounded

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

RADIUS: Final = np.float32(3)
PI: Final = np.float32(np.pi)
HALF: Final = np.float32(0.5)
NEAR_ZERO: Final = np.float32(1e-3)  # below it TensorFlow takes the kernel for 1

# The polynomials of glibc's sinf (2.28 and later), lowest power first, and its reduction to quadrants.
SINE: Final = tuple(map(float.fromhex, ("-0x1.555545995a603p-3", "0x1.1107605230bc4p-7", "-0x1.994eb3774cf24p-13")))
COSINE: Final = tuple(
    map(
        float.fromhex,
        ("-0x1.ffffffd0c621cp-2", "0x1.55553e1068f19p-5", "-0x1.6c087e89a359dp-10", "0x1.99343027bf8c3p-16"),
    )
)
QUADRANTS: Final = float.fromhex("0x1.45F306DC9C883p+23")  # 2 / pi, times 2^24
QUADRANT: Final = float.fromhex("0x1.921FB54442D18p0")


def lanczos3_resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(H, W, 3) -> (size, size, 3) uint8: heights first, as TensorFlow."""
    height, width = image.shape[:2]
    if height == width == size:
        return image
    values = along_rows(image.astype(np.float32), taps(height, size))
    return rounded(along_columns(values, taps(width, size)))


@lru_cache
def taps(old: int, new: int) -> Taps:
    """The weights of `new` rows made of `old`."""
    inverse = np.float32(1 / float(np.float32(new) / np.float32(old)))
    scale = max(inverse, np.float32(1))  # a smaller image is low-pass filtered
    spans = []
    for row in range(new):
        centre = (np.float32(row) + HALF) * inverse
        start = int(np.clip(np.ceil(centre - RADIUS * scale - HALF), 0, old - 1))
        end = int(np.clip(np.floor(centre + RADIUS * scale - HALF), 0, old - 1)) + 1
        weights = _kernel((np.arange(start, end).astype(np.float32) + HALF - centre) * (np.float32(1) / scale))
        total = np.float32(0)
        for weight in weights:  # one by one: numpy's own sum adds in another order
            total += weight
        spans.append((start, weights * (np.float32(1) / total)))
    return packed(spans)


def _kernel(position: Floats) -> Floats:
    x = np.abs(position)
    far, near = x > RADIUS, x <= NEAR_ZERO
    x = np.where(near, np.float32(1), x)
    value = RADIUS * sinf(PI * x) * sinf(PI * x / RADIUS) / (PI * PI * x * x)
    kernel: Floats = np.where(far, np.float32(0), np.where(near, np.float32(1), value))
    return kernel


def sinf(angle: Floats) -> Floats:
    """glibc's sine of angles from 0 to 120, float32, without fused multiply-adds."""
    x = angle.astype(np.float64)
    quadrant = ((x * QUADRANTS).astype(np.int64) + 0x800000) >> 24
    x = x - quadrant * QUADRANT
    sine, cosine = _sine(x), _cosine(x)
    signed = np.where(quadrant & 2, -1, 1) * np.where(quadrant & 1, cosine, sine)
    values: Floats = signed.astype(np.float32)
    return values


def _sine(x: Doubles) -> Doubles:
    square = x * x
    cube = x * square
    return x + cube * SINE[0] + cube * square * (SINE[1] + square * SINE[2])


def _cosine(x: Doubles) -> Doubles:
    square = x * x
    fourth = square * square
    high = COSINE[2] + square * COSINE[3]
    return 1 + square * COSINE[0] + fourth * COSINE[1] + fourth * square * high
