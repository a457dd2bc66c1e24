"""What front ends and the scheduler say to each other: an observation, a reply, a refusal. Knows no wire format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_vla.errors import EdgeVLAError


@dataclass(frozen=True, eq=False)
class Observation:
    """`image` (H, W, 3) uint8 RGB. `robot` names who asks: its newest observation and its drafts are kept under it.

    `received_ns` is `time.monotonic_ns()` when its last byte came. `age_ms` is how old the image was by then, where the
    client says so. It must be answered within `deadline_ms` of `received_ns`, or not at all.
    """

    robot: str
    image: NDArray[np.uint8]
    instruction: str
    received_ns: int
    unnorm_key: str | None = None
    observation_id: int | str | None = None
    deadline_ms: float | None = None
    age_ms: float | None = None


@dataclass(frozen=True, eq=False)
class Reply:
    """An action computed from one observation of one robot. `action` (dims,) float64 in robot units.

    `age_ms` is the image's age when the action was ready; after `valid_for_ms` more it must not be started.
    """

    action: NDArray[np.float64]
    tokens: tuple[int, ...]
    margins: tuple[float, ...]
    unnorm_key: str
    robot: str
    observation_id: int | str | None
    request_id: str
    age_ms: float
    valid_for_ms: float
    queue_ms: float
    infer_ms: float
    artifact: str  # the first 12 digits of its identity
    received_ns: int  # of its observation: by this process' monotonic clock, of which only differences mean anything


class Code(str, Enum):
    """Why there is no action. Stable: clients and dashboards compare them."""

    MALFORMED = "E_MALFORMED"
    TOO_LARGE = "E_TOO_LARGE"
    IMAGE_SHAPE = "E_IMAGE_SHAPE"
    FROZEN = "E_FROZEN"
    INSTRUCTION = "E_INSTRUCTION"
    UNNORM_KEY = "E_UNNORM_KEY"
    UNAUTHORISED = "E_UNAUTHORISED"
    NOT_FOUND = "E_NOT_FOUND"
    SUPERSEDED = "E_SUPERSEDED"
    DEADLINE = "E_DEADLINE"
    OVERLOAD = "E_OVERLOAD"
    RATE = "E_RATE"
    NOT_READY = "E_NOT_READY"
    SHUTTING_DOWN = "E_SHUTTING_DOWN"
    NUMERIC = "E_NUMERIC"
    ENGINE = "E_ENGINE"


STATUS: dict[Code, int] = {
    Code.MALFORMED: 400,
    Code.TOO_LARGE: 413,
    Code.IMAGE_SHAPE: 422,
    Code.FROZEN: 422,
    Code.INSTRUCTION: 422,
    Code.UNNORM_KEY: 422,
    Code.UNAUTHORISED: 401,
    Code.NOT_FOUND: 404,
    Code.SUPERSEDED: 409,
    Code.DEADLINE: 504,
    Code.OVERLOAD: 503,
    Code.RATE: 429,
    Code.NOT_READY: 503,
    Code.SHUTTING_DOWN: 503,
    Code.NUMERIC: 500,
    Code.ENGINE: 500,
}  # HTTP's


class RefusedError(EdgeVLAError):
    """No action, and why: `detail` says what was got and what was expected, without paths, tokens or tracebacks."""

    def __init__(self, code: Code, detail: str, *, request_id: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.code, self.detail, self.request_id, self.retry_after_s = code, detail, request_id, retry_after_s

    @property
    def status(self) -> int:
        return STATUS[self.code]


@dataclass(frozen=True)
class Metadata:
    """What a client may want to know before it asks: shown by `/metadata` and in protocols that greet."""

    artifact: str
    model: str
    unnorm_keys: Sequence[str]
    default_unnorm_key: str | None
    dims: int  # of the default's actions
    image_size: int
    preprocess: str  # an evaluation script's name, or how the policy itself makes an image its size
    max_image_pixels: int
    version: str


class Service(Protocol):
    """What every front end asks of the server."""

    @property
    def metadata(self) -> Metadata: ...

    @property
    def ready(self) -> bool: ...

    async def act(self, observation: Observation) -> Reply:
        """The action for this observation, or `RefusedError`. Cancelling it takes the observation out of the queue."""
        ...

    def reset(self, robot: str) -> None:
        """An episode begins: the robot's drafts are forgotten."""
        ...

    def leave(self, robot: str) -> None:
        """The robot is gone: what it has queued is cancelled, what is kept for it is dropped."""
        ...

    def refused(self, error: RefusedError) -> RefusedError:
        """What a front end refuses by itself, before `act`: counted, logged, and given a request id for the wire."""
        ...
