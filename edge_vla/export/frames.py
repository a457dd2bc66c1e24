"""Frames as an evaluation script hands them to the policy: it is fitted to what it will see."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from edge_vla.data import Frame
from edge_vla.openvla import evaluation
from edge_vla.openvla.evaluation import Preprocess


@dataclass(frozen=True)
class PreparedFrame(Frame):
    """A frame whose picture is opened as `script` leaves it for a policy of `size` pixels a side."""

    script: Preprocess = "none"
    size: int = 0

    def open(self) -> Image.Image:
        return evaluation.prepare(super().open(), self.script, self.size)


def prepared(frames: Sequence[Frame], script: Preprocess, size: int) -> Sequence[Frame]:
    """The same frames for `none`."""
    if script == "none":
        return frames
    known = [{each.name: getattr(frame, each.name) for each in dataclasses.fields(Frame)} for frame in frames]
    return [PreparedFrame(**fields, script=script, size=size) for fields in known]
