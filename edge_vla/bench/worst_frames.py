"""The frames on which a candidate is furthest from its reference, with their images, for a person to look at."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Final

import numpy as np

from edge_vla.bench.agreement import Predictions
from edge_vla.bench.motion import bins
from edge_vla.bench.result import WorstFrame
from edge_vla.data import Frame
from edge_vla.openvla import ActionTokens
from edge_vla.openvla.statistics import ActionStatistics

MOST: Final = 6
PIXELS: Final = 224  # at most, of an image's longer side in the report


def worst_frames(
    frames: Sequence[Frame],
    reference: Predictions,
    candidate: Predictions,
    tokens: ActionTokens,
    statistics: Sequence[ActionStatistics],
) -> list[WorstFrame]:
    """At most six, the largest sum of bins apart first, one an episode; none where all tokens agree."""
    apart = np.abs(bins(candidate.free, tokens) - bins(reference.free, tokens))
    chosen: list[int] = []
    for index in np.argsort(-apart.sum(axis=1), kind="stable").tolist():
        taken = {frames[other].episode for other in chosen if frames[other].episode is not None}
        if apart[index].sum() == 0 or len(chosen) == MOST:
            break
        if frames[index].episode not in taken:
            chosen.append(index)

    def action(predictions: Predictions, index: int) -> list[float]:
        values: list[float] = statistics[index].unnormalise(tokens.decode(predictions.free[index].tolist())).tolist()
        return values

    return [
        WorstFrame(
            frame=index,
            episode=frames[index].episode,
            step=frames[index].step,
            instruction=frames[index].instruction,
            image=_data_uri(frames[index]),
            reference_tokens=reference.free[index].tolist(),
            tokens=candidate.free[index].tolist(),
            reference_action=action(reference, index),
            action=action(candidate, index),
            bins_apart=apart[index].tolist(),
        )
        for index in chosen
    ]


def _data_uri(frame: Frame) -> str:
    image, buffer = frame.open(), io.BytesIO()
    image.thumbnail((PIXELS, PIXELS))
    image.save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
