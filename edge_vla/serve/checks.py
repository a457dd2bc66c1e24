"""What stands between an engine and a client: actions that no motor should get, errors that no stranger should read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_vla.errors import FrameError, NumericError
from edge_vla.openvla.statistics import ActionStatistics
from edge_vla.runtime import Action, Policy, Session
from edge_vla.serve.messages import Code, RefusedError

TOLERANCE: Final = 1e-6  # of the range of a dimension, for rounding


@dataclass(frozen=True, eq=False)
class ActionRange:
    """What a data set's actions may be, rounding included. (dims,) float64 each, in robot units."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def of(cls, statistics: ActionStatistics) -> ActionRange:
        low = np.where(statistics.mask, np.minimum(statistics.q01, statistics.q99), -1.0)
        high = np.where(statistics.mask, np.maximum(statistics.q01, statistics.q99), 1.0)
        slack = TOLERANCE * (high - low + 1)
        return cls(low - slack, high + slack)


def unfit(action: Action, allowed: ActionRange) -> NumericError | None:
    """Why an action is no action of this data set: a number that is not finite, or beyond its percentiles."""
    values = action.values
    if ((values >= allowed.low) & (values <= allowed.high)).all():  # neither holds for NaN
        return None
    finite = np.isfinite(values).all()
    return NumericError("an action outside the range of its data set" if finite else "a non-finite action")


def act_within(
    session: Session, image: NDArray[np.uint8], instruction: str, key: str, ranges: Mapping[str, ActionRange]
) -> Action:
    """A session's action, or NumericError for one that no motor may get. For the engine's thread: no robot waits."""
    action = session.act(image, instruction, key)
    error = unfit(action, ranges[action.unnorm_key])
    if error is not None:
        raise error
    return action


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
