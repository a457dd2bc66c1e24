"""Files into pixels, with Pillow."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from edge_vla.robot.faces import CameraError


def decoded(data: bytes, name: str) -> NDArray[np.uint8]:
    """A JPEG, PNG or other file's bytes as (H, W, 3) uint8 RGB. CameraError `unreadable` for what is none."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CameraError("unreadable", f"{name}: a picture that cannot be read: {error}") from error
