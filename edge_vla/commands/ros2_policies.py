"""The policies that `edge-vla ros2` asks: an artifact in this process, or a server's."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from edge_vla.commands.act_policies import connected, statistics_of
from edge_vla.commands.serve import read_token, require_extra
from edge_vla.errors import ResourceError, UsageError
from edge_vla.options import script
from edge_vla.robot.asker import Answer

if TYPE_CHECKING:
    from edge_vla.openvla import ActionStatistics
    from edge_vla.robot.ros2.parameters import Parameters
    from edge_vla.robot.ros2.pilot import Source
    from edge_vla.robot.units import Declaration
    from edge_vla.runtime import Policy
    from edge_vla.serve.client import Robot

log = logging.getLogger("edge_vla.ros2")
CLIENT: Final = ("msgpack", "websockets")


class InProcess:
    """An artifact that has proved itself."""

    def __init__(self, policy: Policy, key: str, name: str) -> None:
        self.name = name
        self.statistics: ActionStatistics | None = policy.config.statistics[key]
        self._policy, self._key = policy, key

    def act(self, image: NDArray[np.uint8], instruction: str, age_s: float) -> Answer:  # noqa: ARG002
        return Answer(self._policy.act(image, instruction, self._key).values)

    def close(self) -> None:
        """The weights go when nobody holds them any more."""


class Behind:
    """A policy behind `edge-vla serve`. What the client refuses is no action: ResourceError."""

    def __init__(
        self, robot: Robot, name: str, key: str, statistics: ActionStatistics | None, deadline_ms: float
    ) -> None:
        self.name, self.statistics = name, statistics
        self._robot, self._key, self._deadline_ms = robot, key, deadline_ms

    def act(self, image: NDArray[np.uint8], instruction: str, age_s: float) -> Answer:
        from edge_vla.serve.client import ClientError

        left = self._deadline_ms - 1e3 * age_s
        if left <= 0:
            raise ResourceError(f"the image is {1e3 * age_s:.0f} ms old: too late to ask the server")
        try:
            action = self._robot.act(image, instruction, deadline_ms=left, unnorm_key=self._key, age_ms=1e3 * age_s)
        except ClientError as error:
            raise ResourceError(f"no action from the server: {error}") from error
        return Answer(action.values, action.valid_until)

    def close(self) -> None:
        self._robot.close()


def open_source(parameters: Parameters, robot: Declaration) -> Source:
    """As the node's parameters say: in this process, or behind a server."""
    return _behind(parameters, robot) if parameters.server else _in_process(parameters)


def _in_process(parameters: Parameters) -> InProcess:
    from edge_vla.serve.limits import Limits
    from edge_vla.serve.loading import Choices, open_policy

    if parameters.statistics:
        raise UsageError("statistics is for a server: an artifact knows its own, leave the parameter out")
    choices = Choices(
        parameters.device,
        parameters.vision,
        parameters.kernel,
        parameters.dtype,
        parameters.unnorm_key or None,
        script(parameters.preprocess),
    )
    warm = (parameters.instruction,) if parameters.instruction else ()
    served = open_policy(Path(parameters.artifact), choices, Limits(), _progress, warm)
    about = served.metadata
    name = f"{about.model} ({about.artifact}, {served.bits} bits, {1e3 * served.service_s:.0f} ms an action)"
    return InProcess(served.policy, served.key, name)


def _behind(parameters: Parameters, robot: Declaration) -> Behind:
    require_extra(CLIENT, "client")
    known = statistics_of(None, Path(parameters.statistics) if parameters.statistics else None, "statistics")
    token = read_token(Path(parameters.token_file) if parameters.token_file else None)
    server = connected(parameters.server, token, parameters.unnorm_key, known, robot, words=("server", "unnorm_key"))
    name = f"{server.hello.model} ({server.hello.artifact}) at {parameters.server}"
    deadline_ms = parameters.deadline_ms or 1e3 * robot.max_age_s
    return Behind(server.client, name, server.key, server.statistics, deadline_ms)


def _progress(stage: str, fraction: float) -> None:
    log.info("%.0f %%: %s", 100 * fraction, stage)
