"""From what `sensor_msgs/Image` and `CompressedImage` hold to an RGB array. Knows bytes, and neither ROS nor a policy.

Refuses what it would have to guess: a grey picture has no colours to give back, 16 bits a channel have no agreed white.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_vla.errors import FrameError

Pixels = NDArray[np.uint8]

SMALLEST: Final = 16  # pixels a side, as the server takes them
LARGEST: Final = 8_300_000  # pixels: more is no camera's
RAW_REMEDY: Final = "let the driver publish rgb8 or bgr8, or run image_proc before this node"
SIGNS: Final = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}


class Channels(NamedTuple):
    """How many bytes a pixel has, and which of them are red, green and blue."""

    bytes: int
    rgb: tuple[int, int, int]


ENCODINGS: Final = {
    "rgb8": Channels(3, (0, 1, 2)),
    "bgr8": Channels(3, (2, 1, 0)),
    "rgba8": Channels(4, (0, 1, 2)),
    "bgra8": Channels(4, (2, 1, 0)),
}


@dataclass(frozen=True, eq=False)
class RawImage:
    """The fields of a `sensor_msgs/Image`; `step` is the bytes of a row, padding included."""

    height: int
    width: int
    encoding: str
    is_bigendian: bool
    step: int
    data: bytes | bytearray | memoryview


def from_raw(image: RawImage) -> Pixels:
    """(height, width, 3) uint8 RGB, a copy; an alpha channel is left out. FrameError for what is not exactly that."""
    channels = ENCODINGS.get(image.encoding)
    if channels is None:
        raise FrameError(_refused(image.encoding))
    if image.is_bigendian:
        raise FrameError(f"the image says that it is big endian, and {image.encoding} has no byte order: {RAW_REMEDY}")
    _check_size(image.width, image.height)
    row = image.width * channels.bytes
    if image.step < row:
        raise FrameError(f"the image's step is {image.step} bytes, but {image.width} pixels need {row}: {RAW_REMEDY}")
    flat = np.frombuffer(image.data, dtype=np.uint8)
    if flat.size != image.step * image.height:
        raise FrameError(
            f"the image has {flat.size} bytes, but {image.height} rows of {image.step} are "
            f"{image.step * image.height}: it was cut, or the driver's step is wrong"
        )
    pixels = flat.reshape(image.height, image.step)[:, :row].reshape(image.height, image.width, channels.bytes)
    return np.ascontiguousarray(pixels[:, :, channels.rgb])


def from_compressed(data: bytes, form: str) -> Pixels:
    """(height, width, 3) uint8 RGB of a JPEG or PNG. `form` is the message's own word, such as "rgb8; jpeg compressed".

    FrameError for another format, one that its bytes contradict, 16 bits a channel, or grey.
    """
    from PIL import Image

    kind = next((name for name, sign in SIGNS.items() if data.startswith(sign)), None)
    if kind is None:
        raise FrameError(
            f"a compressed image in format {form!r} that is neither JPEG nor PNG: choose one of them in the driver"
        )
    said = form.lower().replace("jpg", "jpeg")
    if any(name in said for name in SIGNS) and kind not in said:
        raise FrameError(f"a compressed image says {form!r}, and its bytes are those of a {kind.upper()}")
    try:
        with Image.open(io.BytesIO(data), formats=(kind.upper(),)) as picture:
            _check_size(*picture.size)
            if picture.mode not in ("RGB", "RGBA", "P", "CMYK"):
                raise FrameError(_refused(f"{kind} in mode {picture.mode}"))
            return np.array(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FrameError(f"a {kind.upper()} that cannot be read: {error}") from error


def _check_size(width: int, height: int) -> None:
    if min(width, height) < SMALLEST or width * height > LARGEST:
        raise FrameError(f"an image of {width} x {height} pixels: expected {SMALLEST} a side and {LARGEST} in all")


def _refused(encoding: str) -> str:
    if encoding.startswith(("mono", "8UC1", "16UC1", "32FC1")) or "mode L" in encoding or "mode I" in encoding:
        return (
            f"the image is {encoding}, grey or depth: the policy learned from colours; choose the colour topic, "
            "such as /camera/color/image_raw"
        )
    return f"the image is {encoding}, expected {', '.join(ENCODINGS)}: {RAW_REMEDY}"
