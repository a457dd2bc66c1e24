"""How much each calibration row counts in a Hessian: as much as the action depends on it.

Of about 290 rows, 256 are the image's and 7 predict the action. Counted alike, image rows are nine tenths of a
Hessian, and a weight's columns are rounded to suit them. But an error on an acting row moves a logit, while one on
an image row moves only keys and values, and only where an acting row attends. So a row counts as the norm of the
action distribution's gradient at the outputs of the linears that read it: the square root of the expected squared
norm, which measured better than the square itself (benchmarks/LOG.md). That only keys and values of the other rows
matter in the last layer follows; it is not coded.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from edge_vla.calibration.action_gradients import Gradients, backpropagate_
from edge_vla.calibration.sequences import Rows
from edge_vla.calibration.stream import STAGES
from edge_vla.errors import NumericError
from edge_vla.model.decoder import DecoderLayer

LOG: Final = logging.getLogger("edge_vla.calibration.row_weights")
POWER: Final = 0.5  # of the expected squared gradient


def row_weights(layer: DecoderLayer, rows: Sequence[Rows], gradients: Gradients) -> list[list[Tensor]]:
    """For each stage and each `Rows`, (n, T) float32 of mean one; moves `gradients` to the layer's input.

    NumericError where a gradient is not finite. A stage that no action depends on counts every row alike, and a
    warning says so.
    """
    sums = [[torch.zeros(same.hidden.shape[:2], device=same.hidden.device) for same in rows] for _ in STAGES]
    stage_of = {name: stage for stage, names in enumerate(STAGES) for name in names}

    def watch(name: str, index: int, part: slice, x: Tensor, gradient: Tensor) -> None:  # noqa: ARG001
        sums[stage_of[name]][index][part] += gradient.float().square().sum(dim=-1).mean(dim=0)

    backpropagate_(layer, rows, gradients, watch)
    return [_normalised(stage, names) for stage, names in zip(sums, STAGES, strict=True)]


def _normalised(squares: Sequence[Tensor], names: Sequence[str]) -> list[Tensor]:
    weights = [square.pow(POWER) for square in squares]
    total, count = sum(float(weight.sum()) for weight in weights), sum(weight.numel() for weight in weights)
    if not torch.isfinite(torch.tensor(total)):
        raise NumericError(f"{names[0]}: the action's gradient is not finite: verify the checkpoint and the frames")
    if total == 0:
        LOG.warning("%s: no action depends on it, every row counts alike", names[0])
        return [torch.ones_like(weight) for weight in weights]
    return [weight * (count / total) for weight in weights]
