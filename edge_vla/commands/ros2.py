"""`edge-vla ros2`: the policy as a ROS 2 lifecycle node; what `ros2 run edge_vla_ros2 policy` starts too."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from edge_vla.commands.serve import read_token, require_extra
from edge_vla.errors import ResourceError, UsageError
from edge_vla.options import script

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge_vla.openvla import ActionStatistics
    from edge_vla.robot.ros2.parameters import Parameters
    from edge_vla.robot.ros2.pilot import Source
    from edge_vla.robot.units import Declaration
    from edge_vla.runtime import Policy
    from edge_vla.serve.client import Robot

log = logging.getLogger("edge_vla.ros2")
CLIENT: Final = ("msgpack", "websockets")


def ros2(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARGS", help="ROS's own: --ros-args -p artifact:=DIR -p robot:=arm.toml."),
    ] = None,
) -> None:
    """The policy as a ROS 2 node: images and an instruction in, actions out, with a lifecycle (docs/ros2.md)."""
    from edge_vla.robot.ros2.run import run

    code = run(open_source, arguments or ())
    if code:
        raise typer.Exit(code)


@dataclass(frozen=True, eq=False)
class Here:
    """An action of a policy in this process, which says nothing about how long it is valid."""

    values: NDArray[np.float64]
    valid_until: float | None = None


class InProcess:
    """An artifact that has proved itself."""

    def __init__(self, policy: Policy, key: str, name: str) -> None:
        self.name = name
        self.statistics: ActionStatistics | None = policy.config.statistics[key]
        self._policy, self._key = policy, key

    def act(self, image: NDArray[np.uint8], instruction: str, age_s: float) -> Here:  # noqa: ARG002
        return Here(self._policy.act(image, instruction, self._key).values)

    def close(self) -> None:
        """The weights go when nobody holds them any more."""


class Behind:
    """A policy behind `edge-vla serve`. What the client refuses is no action: ResourceError."""

    def __init__(
        self, robot: Robot, name: str, key: str, statistics: ActionStatistics | None, deadline_ms: float
    ) -> None:
        self.name, self.statistics = name, statistics
        self._robot, self._key, self._deadline_ms = robot, key, deadline_ms

    def act(self, image: NDArray[np.uint8], instruction: str, age_s: float) -> Here:
        from edge_vla.serve.client import ClientError

        left = self._deadline_ms - 1e3 * age_s
        if left <= 0:
            raise ResourceError(f"the image is {1e3 * age_s:.0f} ms old: too late to ask the server")
        try:
            action = self._robot.act(
                image, instruction, deadline_ms=left, unnorm_key=self._key or None, age_ms=1e3 * age_s
            )
        except ClientError as error:
            raise ResourceError(f"no action from the server: {error}") from error
        return Here(action.values, action.valid_until)

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
    from edge_vla.serve.client import ClientError, Robot

    token = read_token(Path(parameters.token_file) if parameters.token_file else None)
    client = Robot(parameters.server, robot=robot.name, token=token)
    try:
        hello = client.connect()
        key = parameters.unnorm_key or hello.default_unnorm_key
        if key not in hello.unnorm_keys:
            raise UsageError(f"the server does not know unnorm_key {key!r}: one of {sorted(hello.unnorm_keys)}")
        if not parameters.unnorm_key and hello.dims != robot.dims:
            raise UsageError(f"the server's actions have {hello.dims} numbers, and {robot.name} takes {robot.dims}")
        statistics = _statistics(parameters.statistics, key)
    except ClientError as error:
        client.close()
        raise ResourceError(f"{parameters.server}: {error}; is edge-vla serve running there?") from error
    except BaseException:
        client.close()
        raise
    name = f"{hello.model} ({hello.artifact}) at {parameters.server}"
    return Behind(client, name, key, statistics, parameters.deadline_ms or 1e3 * robot.max_age_s)


def _statistics(path: str, key: str) -> ActionStatistics | None:
    """Of a data set, from a dataset_statistics.json. None where none is given."""
    if not path:
        return None
    from edge_vla.openvla import Statistics

    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"statistics {path} cannot be read: {error}") from error
    return Statistics(raw, path)[key]


def _progress(stage: str, fraction: float) -> None:
    log.info("%.0f %%: %s", 100 * fraction, stage)
