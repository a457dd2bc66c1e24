"""Prepare images as OpenVLA v0.1 does (letterbox, resize, centre crop, normalise) with torchvision's transforms.

Ran with Python 3.11, torch 2.13.0 (CPU), torchvision 0.28.0, Pillow 13.0.0, numpy 2.4.6, in an environment of its own:

    python -m tests.golden.make_letterbox

The steps are v0.1's SigLIP tower at 224 pixels: pad each side by int((longest - side) / 2) with int(0.5 * 255) = 127,
which leaves the image one pixel short of square where the difference is odd; resize the shorter side to 224
(bicubic); crop the centre; scale to [0, 1]; subtract 0.5 and divide by 0.5.

`<name>/image` is the input, uint8 (H, W, 3). `<name>/sha256` is the hash of the C-order float32 bytes of the result
(3, 224, 224), and `<name>/sample` the result [:, ::16, ::16], to show where a mismatch lies.
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from .seeded import seeded_picture
from .storage import write_npz
from .torchvision_ops import import_torchvision

FOLDER: Final = Path(__file__).parent
SIZE: Final = 224
SHAPES: Final = {"portrait": (97, 61), "landscape": (60, 113), "square": (64, 64), "sliver": (7, 120)}


def prepare(image: Image.Image) -> npt.NDArray[np.float32]:
    import_torchvision()
    transforms: Any = importlib.import_module("torchvision.transforms")
    functional: Any = importlib.import_module("torchvision.transforms.functional")
    longest = max(image.size)
    sideways, upright = (int((longest - side) / 2) for side in image.size)
    padded = functional.pad(
        image, (sideways, upright, sideways, upright), fill=(int(0.5 * 255),) * 3, padding_mode="constant"
    )
    bicubic = transforms.InterpolationMode.BICUBIC
    resized = transforms.Resize(SIZE, interpolation=bicubic, max_size=None, antialias=True)(padded)
    tensor = functional.to_tensor(transforms.CenterCrop(SIZE)(resized))
    pixels: npt.NDArray[np.float32] = functional.normalize(tensor, mean=[0.5] * 3, std=[0.5] * 3).numpy()
    assert pixels.shape == (3, SIZE, SIZE), pixels.shape
    print(f"{image.size} padded to {padded.size}, resized to {resized.size}")  # noqa: T201
    return pixels


def main() -> None:
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, (height, width) in SHAPES.items():
        image = seeded_picture(f"letterbox/{name}", height, width)
        pixels = prepare(Image.fromarray(image))
        arrays[f"{name}/image"] = image
        arrays[f"{name}/sha256"] = np.array(hashlib.sha256(np.ascontiguousarray(pixels, "<f4").tobytes()).hexdigest())
        arrays[f"{name}/sample"] = pixels[:, ::16, ::16]
    write_npz(FOLDER / "letterbox.npz", arrays)


if __name__ == "__main__":
    main()
