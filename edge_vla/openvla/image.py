"""Camera image -> pixel values, bit-equal to OpenVLA's own processor, with Pillow and numpy only.

The normalisation constants are the checkpoint's serialised ones, which are rounded to bfloat16: the exact
ImageNet numbers would be wrong by up to 0.008.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge_vla import typed_json
from edge_vla.errors import CheckpointError, EdgeVLAWarning, FrameError

Resize = Literal["resize-naive", "letterbox"]
BICUBIC = 3  # Pillow's number, as preprocessor_config.json stores it


@dataclass(frozen=True)
class Normalisation:
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Resizing:
    """`size` is height and width, or the shorter side alone; absent, what the strategy makes it."""

    interpolation: int
    size: list[int] | int | None = None


@dataclass(frozen=True)
class Cropping:
    output_size: list[int]


@dataclass(frozen=True)
class PreprocessorConfig:
    """What is read of preprocessor_config.json: one of each transform per tower.

    OpenVLA's processor builds the transforms from the strategy, then puts the saved `tvf_*` over them: those decide.
    """

    tvf_normalize_params: list[Normalisation]
    tvf_resize_params: list[Resizing]
    tvf_crop_params: list[Cropping] | None = None
    tvf_do_letterbox: bool | None = None
    tvf_letterbox_fill: tuple[int, ...] | None = None
    means: list[tuple[float, ...]] | None = None
    image_resize_strategy: str = "letterbox"

    @property
    def letterbox(self) -> bool:
        return self.image_resize_strategy == "letterbox" if self.tvf_do_letterbox is None else self.tvf_do_letterbox


@dataclass(frozen=True)
class ImageContract:
    """How an image becomes pixel values: one mean and deviation a tower, in the towers' order."""

    size: int
    resize: Resize
    means: tuple[tuple[float, ...], ...]
    deviations: tuple[tuple[float, ...], ...]
    fill: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        rows = [*self.means, *self.deviations, *([self.fill] if self.fill is not None else [])]
        if self.resize not in get_args(Resize) or (self.resize == "letterbox" and self.fill is None):
            raise CheckpointError(
                f"preprocessing: resize {self.resize!r} with fill {self.fill}; known: {get_args(Resize)}"
            )
        if any(len(row) != 3 for row in rows) or len(self.means) != len(self.deviations):
            raise CheckpointError(f"preprocessing: expected three channels for each mean and deviation, got {rows}")
        if not all(value > 0 for row in self.deviations for value in row):
            raise CheckpointError(f"preprocessing: deviations must be positive, got {self.deviations}")

    @staticmethod
    def from_preprocessor(raw: object, *, size: int, towers: int) -> ImageContract:
        """From preprocessor_config.json; anything but bicubic resizing to the towers' size is refused."""
        try:
            given = typed_json.from_json(PreprocessorConfig, raw, "preprocessor_config.json", ignore_unknown=True)
            means = tuple(one.mean for one in given.tvf_normalize_params)
            deviations = tuple(one.std for one in given.tvf_normalize_params)
            # Upstream's loop over the towers leaves the last one's.
            fill = given.tvf_letterbox_fill or tuple(int(value * 255) for value in (given.means or means)[-1])
        except (ValueError, IndexError, OverflowError) as error:
            raise CheckpointError(f"preprocessor_config.json is malformed ({error}): download it again") from error
        strategy, interpolations = given.image_resize_strategy, {one.interpolation for one in given.tvf_resize_params}
        if strategy not in get_args(Resize):
            raise CheckpointError(f"preprocessor_config.json: resize strategy {strategy!r}; known: {get_args(Resize)}")
        if interpolations != {BICUBIC} or len(means) != towers:
            raise CheckpointError(
                f"preprocessor_config.json: expected {towers} bicubic transforms (interpolation {BICUBIC}), "
                f"got {len(means)} with {interpolations}"
            )
        _check_sizes(given, size)
        if given.letterbox != (strategy == "letterbox"):
            warnings.warn(
                f"preprocessor_config.json: the strategy is {strategy}, its transforms "
                f"{'letterbox' if given.letterbox else 'stretch'}: as upstream, the transforms decide",
                EdgeVLAWarning,
                3,
            )
        if not given.letterbox:
            return ImageContract(size, "resize-naive", means, deviations)
        return ImageContract(size, "letterbox", means, deviations, fill)


def _check_sizes(given: PreprocessorConfig, size: int) -> None:
    """CheckpointError unless every transform ends at the towers' size in the way that the contract has."""
    shape: int | list[int] = size if given.letterbox else [size, size]
    for resizing in given.tvf_resize_params:
        if resizing.size not in (shape, None):
            raise CheckpointError(
                f"preprocessor_config.json: tvf_resize_params resize to {resizing.size}, expected {shape} "
                f"({'letterbox' if given.letterbox else 'stretch'}, towers of {size} px): the file is of another model"
            )
    for crop in given.tvf_crop_params or ():
        if crop.output_size != [size, size]:
            raise CheckpointError(
                f"preprocessor_config.json: tvf_crop_params crop to {crop.output_size}, the towers take "
                f"{[size, size]}: the file is of another model"
            )


def as_rgb(image: Image.Image | NDArray[Any]) -> Image.Image:
    """A Pillow image, or a uint8 array (H, W), (H, W, 3) or (H, W, 4), as RGB; anything else raises FrameError."""
    if isinstance(image, Image.Image):
        if image.mode in ("I", "F") or image.mode.startswith("I;") or 0 in image.size:
            raise FrameError(
                f"an image must have 8 bits a channel and some pixels, got mode {image.mode}, {image.size}: "
                "scale it to 0..255 and convert"  # Pillow itself would clip it
            )
        return image.convert("RGB")
    if not isinstance(image, np.ndarray):
        raise FrameError(f"an image must be a Pillow image or a numpy array, got {type(image).__name__}{_hint(image)}")
    if image.dtype != np.uint8:
        raise FrameError(f"an image array must be uint8 in 0..255, got {image.dtype}{_as_uint8(image)}")
    if image.ndim == 3 and image.shape[2] not in (3, 4) and image.shape[0] in (3, 4):
        raise FrameError(f"an image array must be height x width x channels, got {image.shape}: transpose it (1, 2, 0)")
    if image.ndim == 4 and len(image) == 1:
        raise FrameError(f"an image array must be one image, got {image.shape}: give image[0]")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)) or 0 in image.shape:
        raise FrameError(f"an image array must be (H, W), (H, W, 3) or (H, W, 4), got {image.shape}")
    return Image.fromarray(image).convert("RGB")


def _hint(image: object) -> str:
    """What to call instead, for the things that are passed for images."""
    shape = tuple(getattr(image, "shape", ()))
    if type(image).__module__.partition(".")[0] == "torch" and shape:
        turned = ".permute(1, 2, 0)" if len(shape) == 3 and shape[0] in (3, 4) else ""
        return f" of shape {shape}: pass image{turned}.cpu().numpy(), as uint8"
    if isinstance(image, str | Path):
        return ": pass PIL.Image.open(path)"
    if isinstance(image, bytes):
        return ": pass PIL.Image.open(io.BytesIO(data))"
    return ": pass np.asarray(image, dtype=np.uint8)" if isinstance(image, list) else ""


def _as_uint8(image: NDArray[Any]) -> str:
    """How an array of another type becomes one of bytes: by what its values look like."""
    if image.dtype.kind not in "iuf" or not image.size or not np.isfinite(image).all():
        return ": expected finite numbers"
    low, high = float(image.min()), float(image.max())
    return f" in {low:.6g}..{high:.6g}: {_remedy(image.dtype, low, high)}"


def _remedy(dtype: np.dtype[Any], low: float, high: float) -> str:
    if dtype.kind == "f" and low >= 0 and high <= 1:
        return "multiply by 255 and convert: (255 * image).round().astype(np.uint8)"
    if -1 <= low < 0 and high <= 1:
        return "it looks normalised: give the camera's own picture"
    if dtype == np.uint16 and high > 255:
        return "16 bits a channel? (image // 257).astype(np.uint8); 12 bits: image // 16"
    if low >= 0 and high <= 255:
        return "convert it: image.astype(np.uint8)"
    return "scale it to 0..255 and convert"


def preprocess(image: Image.Image, contract: ImageContract) -> NDArray[np.float32]:
    """RGB image -> (3 x towers, size, size) float32, three channels a tower."""
    shaped = _letterbox(image, contract) if contract.resize == "letterbox" else _stretch(image, contract.size)
    levels, planes = np.asarray(shaped), _values(contract)
    channels = levels.shape[2]
    pixels = np.empty((len(planes), *levels.shape[:2]), dtype=np.float32)
    for i, plane in enumerate(planes):
        pixels[i] = plane[levels[:, :, i % channels]]
    return pixels


@lru_cache
def _values(contract: ImageContract) -> NDArray[np.float32]:
    """(3 x towers, 256): the pixel value of each of 256 levels in each channel, by upstream's arithmetic."""
    unit = np.arange(256, dtype=np.float32)[:, None] / np.float32(255)
    values = [
        (unit - np.asarray(mean, dtype=np.float32)) / np.asarray(deviation, dtype=np.float32)
        for mean, deviation in zip(contract.means, contract.deviations, strict=True)
    ]
    return np.ascontiguousarray(np.concatenate(values, axis=1).T)


def _stretch(image: Image.Image, size: int) -> Image.Image:
    return _resized(image, size, size)


def _letterbox(image: Image.Image, contract: ImageContract) -> Image.Image:
    """Pad to a square, resize the shorter side, crop the centre: the original's steps, with its truncations."""
    width, height = image.size
    longer = max(width, height)
    left, top = int((longer - width) / 2), int((longer - height) / 2)
    padded = Image.new("RGB", (width + 2 * left, height + 2 * top), contract.fill)
    padded.paste(image, (left, top))
    width, height = padded.size
    size = contract.size
    short, long = min(width, height), int(size * max(width, height) / min(width, height))
    resized = _resized(padded, size, long) if width == short else _resized(padded, long, size)
    left, top = round((resized.width - size) / 2.0), round((resized.height - size) / 2.0)
    return resized.crop((left, top, left + size, top + size))


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    """Along the width, then the height, as every Pillow until 12 does; 13 turns that round for some upright images."""
    for size in ((width, image.height), (width, height)):
        image = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
    return image
