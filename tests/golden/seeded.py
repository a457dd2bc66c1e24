"""Weights and inputs that a key alone determines, so that only outputs need storing.

A counter is scrambled with 64-bit integer arithmetic and its top 24 bits become a float32; no transcendental
function and no library generator is involved, so every machine gets the same bits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

STEP: Final = np.uint64(0x9E3779B97F4A7C15)
FIRST: Final = np.uint64(0xBF58476D1CE4E5B9)
SECOND: Final = np.uint64(0x94D049BB133111EB)


def seeded_tensor(key: str, shape: Sequence[int], scale: float, offset: float = 0.0) -> npt.NDArray[np.float32]:
    """Values spread evenly over [offset - scale, offset + scale), determined by `key` and the position."""
    count = math.prod(shape)
    seed = np.frombuffer(hashlib.sha256(key.encode()).digest()[:8], "<u8").astype(np.uint64)
    mixed = seed + STEP * np.arange(1, count + 1, dtype=np.uint64)  # wraps, as meant
    mixed = (mixed ^ (mixed >> np.uint64(30))) * FIRST
    mixed = (mixed ^ (mixed >> np.uint64(27))) * SECOND
    mixed = mixed ^ (mixed >> np.uint64(31))
    unit = (mixed >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
    scaled: npt.NDArray[np.float32] = unit * np.float32(scale) + np.float32(offset)
    return scaled.reshape(tuple(shape))


def seeded_weight(tower: str, key: str, shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """A weight of a vision tower by its checkpoint key (`blocks.0.ls1.scale_factor`, not timm's `gamma`).

    Matrices keep the variance of what they multiply; norms and LayerScale stay near values that trained towers have.
    """
    seed = f"{tower}/{key}"
    last = key.split(".")[-1]
    if last == "scale_factor":
        return seeded_tensor(seed, shape, 0.3, 0.5)
    if "norm" in key and last == "weight":
        return seeded_tensor(seed, shape, 0.3, 1.0)
    if last == "weight":
        return seeded_tensor(seed, shape, math.sqrt(3 / math.prod(shape[1:])))
    if last == "bias":
        return seeded_tensor(seed, shape, 0.2)
    return seeded_tensor(seed, shape, 0.5)  # cls_token, reg_token, pos_embed, attn_pool.latent


def seeded_picture(key: str, height: int, width: int) -> npt.NDArray[np.uint8]:
    """A gradient under noise, with hard edges that overshoot in a bicubic resize."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    ramp = np.stack([rows / height, columns / width, 1 - rows / height], axis=-1) * 255
    noise = seeded_tensor(key, (height, width, 3), 40.0)
    image = np.clip(np.rint(ramp + noise), 0, 255)
    image[height // 3 : height // 2, width // 4 : width // 2] = (255, 0, 255)
    whole: npt.NDArray[np.uint8] = image.astype(np.uint8)
    return whole
