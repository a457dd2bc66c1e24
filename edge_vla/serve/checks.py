"""What stands between an engine and a client: actions that no motor should get, errors that no stranger should read."""

from __future__ import annotations

from typing import Final

import numpy as np

from edge_vla.errors import FrameError, NumericError
from edge_vla.openvla.statistics import ActionStatistics
from edge_vla.runtime import Action, Policy
from edge_vla.serve.messages import Code, RefusedError

TOLERANCE: Final = 1e-6  # of the range of a dimension, for rounding


def unfit(action: Action, statistics: ActionStatistics) -> NumericError | None:
    """Why an action is no action of this data set: a number that is not finite, or beyond its percentiles."""
    if not np.isfinite(action.values).all():
        return NumericError("a non-finite action")
    low = np.where(statistics.mask, np.minimum(statistics.q01, statistics.q99), -1.0)
    high = np.where(statistics.mask, np.maximum(statistics.q01, statistics.q99), 1.0)
    slack = TOLERANCE * (high - low + 1)
    if (action.values < low - slack).any() or (action.values > high + slack).any():
        return NumericError("an action outside the range of its data set")
    return None


def explain(error: BaseException) -> RefusedError:
    """What a client is told: the kind of error, never its text."""
    if isinstance(error, RefusedError):
        return RefusedError(error.code, error.detail)
    if isinstance(error, NumericError):
        return RefusedError(Code.NUMERIC, "the policy gave no finite action for this observation: hold")
    if isinstance(error, FrameError):
        return RefusedError(Code.IMAGE_SHAPE, "the policy cannot read this image")
    return RefusedError(Code.ENGINE, "the engine failed on this observation; the server's log has why")


def instruction_tokens(policy: Policy, instruction: str) -> int:
    """What an instruction adds to the prompt."""
    return len(policy.prompter(instruction)) - len(policy.prompter("x")) + 1
