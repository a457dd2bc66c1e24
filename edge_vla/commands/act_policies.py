"""The policies that `edge-vla act` asks: an artifact in this process, or a server's."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_vla.errors import ResourceError, UsageError
from edge_vla.robot.asker import Answer, NoAction
from edge_vla.robot.faces import Picture

if TYPE_CHECKING:
    from edge_vla.openvla import ActionStatistics, Statistics
    from edge_vla.robot.units import Declaration
    from edge_vla.runtime import Policy
    from edge_vla.serve.client import Hello, Robot

Instruction = Callable[[], str]


class InProcess:
    """A loaded policy, which drafts from its own last action."""

    def __init__(self, policy: Policy, instruction: Instruction, key: str | None) -> None:
        self.key = policy.config.statistics.resolve(key)
        self.statistics: ActionStatistics | None = policy.config.statistics[self.key]
        self._session, self._instruction = policy.session(), instruction

    def act(self, picture: Picture, deadline: float) -> Answer:  # noqa: ARG002 - nothing here can be cut short
        return Answer(self._session.act(picture.image, self._instruction(), self.key).values)

    def reset(self) -> None:
        self._session.reset()

    def close(self) -> None:
        """The process ends with it."""


class Served:
    """A policy behind `edge-vla serve`. What the client refuses is no action, by the client's reason."""

    def __init__(
        self, robot: Robot, instruction: Instruction, key: str | None, statistics: ActionStatistics | None
    ) -> None:
        self.key, self.statistics = key, statistics
        self._robot, self._instruction = robot, instruction

    def act(self, picture: Picture, deadline: float) -> Answer:
        from edge_vla.serve import client

        now = time.monotonic()
        left_ms, age_ms = 1e3 * (deadline - now), 1e3 * (now - picture.taken)
        try:
            action = self._robot.act(
                picture.image,
                self._instruction(),
                deadline_ms=max(1.0, left_ms),
                unnorm_key=self.key,
                age_ms=max(0.0, age_ms),
            )
        except client.RefusedError as error:
            raise NoAction(f"server {error.code}", str(error)) from error
        except client.ClientError as error:
            name = type(error).__name__.removesuffix("Error").lower()
            raise NoAction(f"server {name}", f"no action from the server: {error}") from error
        return Answer(action.values, action.valid_until)

    def reset(self) -> None:
        """Nothing: the server drafts from the last action at no risk."""

    def close(self) -> None:
        self._robot.close()


def in_process(policy: Policy, instruction: Instruction, key: str | None, robot: Declaration) -> InProcess:
    """UsageError for a policy with another number of dimensions than the robot's."""
    actor = InProcess(policy, instruction, key)
    check_dims(len(policy.config.statistics[actor.key].q01), robot)
    return actor


def served(
    url: str,
    token: str | None,
    instruction: Instruction,
    key: str | None,
    statistics: Statistics | None,
    robot: Declaration,
) -> Served:
    """Connected. ResourceError where nothing answers there, or the server refuses us."""
    server = connected(url, token, key, statistics, robot)
    return Served(server.client, instruction, server.key, server.statistics)


@dataclass(frozen=True, eq=False)
class Connected:
    """A server that has what a robot needs. `statistics` of the `key` that it is asked for, where known."""

    client: Robot
    hello: Hello
    key: str
    statistics: ActionStatistics | None


def connected(
    url: str,
    token: str | None,
    key: str | None,
    statistics: Statistics | None,
    robot: Declaration,
    words: tuple[str, str] = ("--server", "--unnorm-key"),
) -> Connected:
    """UsageError, in the user's `words` for address and key, for what does not fit; else as `served`."""
    from edge_vla.serve.client import ClientError, Robot

    its_address, its_key = words
    if not url.startswith(("ws://", "wss://")):
        raise UsageError(f"{its_address} {url}: expected ws://HOST:PORT or wss://HOST:PORT, as edge-vla serve says it")
    client = Robot(url, robot.name, token=token, resize=True)
    try:
        hello = client.connect()
        chosen = key or hello.default_unnorm_key
        if chosen not in hello.unnorm_keys:
            raise UsageError(f"{its_key} {chosen}: the server knows {', '.join(hello.unnorm_keys)}")
        if chosen == hello.default_unnorm_key:  # whose dimensions the server says
            check_dims(hello.dims, robot)
        found = None if statistics is None else statistics[statistics.resolve(chosen)]
    except ClientError as error:
        client.close()
        raise ResourceError(f"{its_address} {url}: {error}: start it there with: edge-vla serve ARTIFACT") from error
    except BaseException:
        client.close()
        raise
    return Connected(client, hello, chosen, found)


def statistics_of(artifact: Path | None, file: Path | None, word: str = "--statistics") -> Statistics | None:
    """For bounds that are declared to be the data set's, when the policy is elsewhere. `word` says which."""
    from edge_vla import typed_json
    from edge_vla.artifact import Artifact
    from edge_vla.openvla import Statistics

    if file is not None:
        try:
            return Statistics(typed_json.parse(file.read_bytes()), str(file))
        except OSError as error:
            raise ResourceError(f"{word} {file}: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(f"{word} {file} is not JSON: {error}") from error
    return None if artifact is None else Artifact(artifact).manifest.config.statistics


def check_dims(found: int, robot: Declaration) -> None:
    if found != robot.dims:
        raise UsageError(
            f"the policy's actions have {found} dimensions and {robot.name} declares {robot.dims}: correct robot.toml"
        )
