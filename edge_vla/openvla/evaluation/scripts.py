"""The choice and its table: which script, which steps, in which order. The steps' arithmetic is in files of their own.

`libero` is `experiments/robot/libero` and `openvla_utils.py` of openvla/openvla (c8f03f4) with `center_crop=True`;
openvla-oft (213c5ff) does the same. Benchmarks that turn LIBERO's images themselves need `libero-upright`. `simpler`
is `OpenVLAInference` of DelinQu/SimplerEnv-OpenVLA (ccfe380).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge_vla.errors import UsageError
from edge_vla.openvla.evaluation.area import area_resize
from edge_vla.openvla.evaluation.crop import centre_crop
from edge_vla.openvla.evaluation.jpeg import jpeg_round_trip
from edge_vla.openvla.evaluation.lanczos import lanczos3_resize
from edge_vla.openvla.image import ImageContract, as_rgb, preprocess
from edge_vla.suggestions import choose

Preprocess = Literal["none", "libero", "libero-upright", "simpler"]


@dataclass(frozen=True)
class Step:
    """`run`: an image (H, W, 3) uint8 and the policy's image size -> the next (H, W, 3) uint8."""

    name: str
    run: Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]


TURN: Final = Step("turn by 180°", lambda image, _: image[::-1, ::-1])
JPEG: Final = Step("JPEG and back", lambda image, _: jpeg_round_trip(image))
LANCZOS3: Final = Step("lanczos3 resize", lanczos3_resize)
CROP: Final = Step("crop to the middle 90 % of the area", centre_crop)
AREA: Final = Step("area resize", area_resize)

SCRIPTS: Final[Mapping[str, tuple[Step, ...]]] = {
    "none": (),
    "libero": (TURN, JPEG, LANCZOS3, CROP),
    "libero-upright": (JPEG, LANCZOS3, CROP),
    "simpler": (AREA,),
}


def chosen(name: str) -> Preprocess:
    """The name, or UsageError that lists those that are known."""
    if name not in SCRIPTS:
        raise UsageError(f"--preprocess {name}: {choose(name, SCRIPTS)}")
    return cast(Preprocess, name)


def described(name: str) -> str:
    """The name and its steps, as they are printed."""
    steps = ", ".join(step.name for step in SCRIPTS[chosen(name)])
    return f"preprocess {name}: {steps or 'images as they come'}"


def prepare(image: Image.Image, name: Preprocess, size: int) -> Image.Image:
    """An RGB image as the script hands it to a processor that takes `size` pixels a side; `none` is the identity."""
    if not (steps := SCRIPTS[chosen(name)]):
        return image
    levels: NDArray[np.uint8] = np.asarray(image)
    for step in steps:
        levels = step.run(levels, size)
    return Image.fromarray(levels)


def pixels(image: Image.Image | NDArray[Any], name: Preprocess, contract: ImageContract) -> NDArray[np.float32]:
    """Any image that `as_rgb` reads -> pixel values (3 x towers, size, size), the script's steps before OpenVLA's."""
    return preprocess(prepare(as_rgb(image), name, contract.size), contract)
