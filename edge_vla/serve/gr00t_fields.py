"""What a GR00T observation says, in either version's fields. Knows the fields, neither sockets nor the service.

N1.5: `{"video.NAME": (T, H, W, 3) or (B, T, H, W, 3) uint8, "annotation.…": [text]}`. N1.6, N1.7: `{"observation":
{"video": {NAME: (B, T, H, W, 3) uint8}, "language": {NAME: [[text]]}}, "options": map or None}`. Of T images the last
one counts: OpenVLA looks at one. State is not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_vla.serve.codec.gr00t import Version
from edge_vla.serve.codec.image import rgb
from edge_vla.serve.codec.values import Value, kind, malformed, too_large
from edge_vla.serve.fields import fields, identifier, instruction, missing, number, text
from edge_vla.serve.limits import Limits
from edge_vla.serve.messages import Code, Observation, RefusedError

CAMERAS: Final = ("image", "image_0", "ego_view", "front")  # where there are several, by preference
LANGUAGE: Final = "annotation.human.task_description"
AXES: Final = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
VIDEO_DIMS: Final = 4  # of one robot's: T, H, W, 3


@dataclass(frozen=True, eq=False)
class Asked:
    """One image and one instruction a row of the batch. `options` are what N1.6's caller added."""

    version: Version
    batched: bool
    images: list[NDArray[np.uint8]]
    instructions: list[str]
    options: dict[str, Value]

    def observation(self, row: int, robot: str, received_ns: int) -> Observation:
        options = self.options
        return Observation(
            robot=robot,
            image=self.images[row],
            instruction=self.instructions[row],
            received_ns=received_ns,
            unnorm_key=text(options.get("unnorm_key"), "options.unnorm_key"),
            observation_id=identifier(options.get("observation_id"), "options.observation_id"),
            deadline_ms=number(options.get("deadline_ms"), "options.deadline_ms"),
            age_ms=number(options.get("age_ms"), "options.age_ms"),
        )


def read(data: dict[str, Value], limits: Limits) -> Asked:
    """Which version it is shows in its fields. Raises RefusedError."""
    return _nested(data, limits) if "observation" in data else _flat(data, limits)


def _nested(data: dict[str, Value], limits: Limits) -> Asked:
    observation = fields(data["observation"])
    options = {} if data.get("options") is None else fields(data["options"])
    for name in ("video", "language"):
        if name not in observation:
            raise missing(f"'{name}'", observation, ["video", "language"])
    images = _images(fields(observation["video"]), limits, batched=True)
    return Asked("n1.6", True, images, _instructions(fields(observation["language"]), len(images)), options)


def _flat(data: dict[str, Value], limits: Limits) -> Asked:
    videos = {name.partition(".")[2]: value for name, value in data.items() if name.startswith("video.")}
    if not videos:
        raise missing("a video", data, ["video.NAME"])
    batched = any(isinstance(video, np.ndarray) and video.ndim > VIDEO_DIMS for video in videos.values())
    images = _images(videos, limits, batched=batched)
    language = {name: value for name, value in data.items() if name.startswith("annotation.")}
    return Asked("n1.5", batched, images, _instructions(language, len(images)), {})


def _images(videos: dict[str, Value], limits: Limits, *, batched: bool) -> list[NDArray[np.uint8]]:
    name = next(iter(videos)) if len(videos) == 1 else next((camera for camera in CAMERAS if camera in videos), None)
    if name is None:
        raise missing("a camera to prefer", videos, CAMERAS)
    video = videos[name]
    if not isinstance(video, np.ndarray):
        raise RefusedError(Code.IMAGE_SHAPE, f"video {name[:40]!a}: got {kind(video)}, expected an array of uint8")
    expected = "(B, T, H, W, 3)" if batched else "(T, H, W, 3)"
    if video.ndim != VIDEO_DIMS + batched or 0 in video.shape:
        raise RefusedError(Code.IMAGE_SHAPE, f"video {name[:40]!a}: got {video.shape}, expected {expected} uint8")
    rows: NDArray[Any] = video if batched else video[None]
    if len(rows) > limits.images:
        raise too_large(f"a batch of {len(rows)}", f"at most {limits.images}")
    return [rgb(row[-1], f"video {name[:40]!a}", limits) for row in rows]


def _instructions(language: dict[str, Value], rows: int) -> list[str]:
    """A text for each row; one alone is everybody's."""
    if len(language) != 1:
        raise missing("the one instruction", language, [LANGUAGE])
    ((name, value),) = language.items()
    listed = value if isinstance(value, list) else [value]
    if len(listed) not in (1, rows):
        raise malformed(f"{len(listed)} instructions for {rows} images", "as many, or one")
    texts = [instruction(item, name[:40]) for item in listed]
    return texts if len(texts) == rows else texts * rows
