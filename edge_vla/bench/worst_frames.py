"""The frames on which a candidate is furthest from its reference, with their pictures, for a person to look at."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from edge_vla.bench.agreement import Side
from edge_vla.data import Frame
from edge_vla.openvla import ActionTokens
from edge_vla.openvla.statistics import ActionStatistics

MOST: Final = 6
PIXELS: Final = 224  # a picture's longer side in the report, at most


def worst_frames(
    frames: Sequence[Frame],
    reference: Side,
    candidate: Side,
    tokens: ActionTokens,
    statistics: Sequence[ActionStatistics],
) -> list[dict[str, Any]]:
    """At most six, the largest sum of bins apart first, one an episode; none where all tokens agree."""
    shape = candidate.free.shape
    bins = [tokens.bins(side.free.ravel().tolist()).reshape(shape) for side in (reference, candidate)]
    apart = np.abs(bins[1] - bins[0])
    chosen: list[int] = []
    for index in np.argsort(-apart.sum(axis=1), kind="stable").tolist():
        seen = {frames[other].episode for other in chosen if frames[other].episode is not None}
        if apart[index].sum() == 0 or len(chosen) == MOST:
            break
        if frames[index].episode not in seen:
            chosen.append(index)
    return [
        {
            "frame": index,
            "episode": frames[index].episode,
            "step": frames[index].step,
            "instruction": frames[index].instruction,
            "image": _data_uri(frames[index]),
            "reference_tokens": reference.free[index].tolist(),
            "tokens": candidate.free[index].tolist(),
            "reference_action": _action(reference, index, tokens, statistics),
            "action": _action(candidate, index, tokens, statistics),
            "bins_apart": apart[index].tolist(),
        }
        for index in chosen
    ]


def _action(side: Side, index: int, tokens: ActionTokens, statistics: Sequence[ActionStatistics]) -> list[float]:
    values: list[float] = statistics[index].unnormalise(tokens.decode(side.free[index].tolist())).tolist()
    return values


def _data_uri(frame: Frame) -> str:
    image, buffer = frame.open(), io.BytesIO()
    image.thumbnail((PIXELS, PIXELS))
    image.save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
