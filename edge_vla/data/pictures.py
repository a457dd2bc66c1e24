"""What can be seen of recorded pictures without a policy: that a camera gave nothing, or the same again and again.

Red and blue in each other's place can't be seen, nor that a picture stands on its head.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Final

from edge_vla.data.frames import Frame, episodes
from edge_vla.errors import EdgeVLAWarning

FROZEN: Final = 8  # frames in a row with one picture, while no two neighbours' recorded actions are equal


def check_pictures(frames: Sequence[Frame]) -> None:
    """EdgeVLAWarning for pictures of one colour, and for a picture that stays while the actions change.

    Opens every image.
    """
    ids, digests, blank = episodes(frames), list[str](), 0
    for frame in frames:
        image = frame.open()
        bands = [image.getchannel(band).getextrema() for band in image.getbands()]
        blank += all(low == high for low, high in bands)
        digests.append(hashlib.sha256(image.tobytes()).hexdigest())
    if blank:
        message = f"{blank} of {len(frames)} pictures are of one colour: a camera that gave none?"
        warnings.warn(message, EdgeVLAWarning, 3)
    order = sorted(range(len(frames)), key=lambda i: (ids[i], frames[i].step or 0, i))
    runs = [list(run) for _, run in groupby(order, key=lambda i: (ids[i], digests[i]))]
    frozen = [run for run in runs if len(run) >= FROZEN and _acting([frames[i] for i in run])]
    if frozen:
        message = (
            f"{frames[frozen[0][0]].image.name} and {len(frozen[0]) - 1} frames after it are one picture while the "
            f"recorded actions change (runs like it: {len(frozen)}): a camera that froze?"
        )
        warnings.warn(message, EdgeVLAWarning, 3)


def _acting(run: Sequence[Frame]) -> bool:
    actions = [frame.action for frame in run]
    return None not in actions and all(one != two for one, two in pairwise(actions))
