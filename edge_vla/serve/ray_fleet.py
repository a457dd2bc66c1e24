"""A fleet's replicas as Ray actors: one a GPU, or several on CPUs, on this machine or a cluster.

Plain actors and not Ray Serve: Serve's proxy speaks HTTP alone, while robots keep a WebSocket or ZeroMQ connection; its
router picks a replica anew for each request and queues there without deadlines, while a robot's drafts and its newest
observation live at one; and it asks a lost request again, whose image is old by then. Actors give what is needed: a
process each, placed by resource, calls that fail when it dies. The front end, its limits and the schedulers are ours.
Autoscaling is Serve's as well, and of its own replicas alone, so the number is fixed.

Imports Ray, so nothing imports this unless a fleet was asked for.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Final, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from edge_vla.cluster import connect, machines
from edge_vla.errors import BackendError, UsageError
from edge_vla.serve.affinity import share
from edge_vla.serve.handles import LostError
from edge_vla.serve.host import HostOptions
from edge_vla.serve.loading import Choices
from edge_vla.serve.messages import Reply
from edge_vla.serve.replica import Asked, Facts, Failed, Pulse, Refused, Replica

T = TypeVar("T")
CALLS: Final = 10_000  # at a time, to one actor: the front end bounds them by its connections


class RayCluster:
    """`replicas` None: as many as there are GPUs, or one on CPUs.

    Made on the main thread before the server's own signal handlers are set: Ray sets handlers as it connects.
    """

    def __init__(self, address: str | None, replicas: int | None, device: str) -> None:
        self._replicas, self._device = replicas, device
        self._resources: dict[str, Any] = {}
        self._threads: int | None = None
        connect(address, replicas or 1)

    def open(self) -> int:
        """Divide the cluster: how many replicas there will be. UsageError where they do not fit."""
        found = machines()
        gpus = sum(gpu for _, gpu in found)
        if self._device != "cpu" and gpus:
            replicas = self._replicas or gpus
            if replicas > gpus:
                raise UsageError(f"--replicas {replicas}: the cluster has {gpus} GPUs, and each replica needs one")
            self._resources = {"num_gpus": 1, "num_cpus": 1}
            return replicas
        if self._device not in ("auto", "cpu"):
            raise BackendError(f"--device {self._device}: the cluster has no GPU; add a machine with one, or use cpu")
        replicas = self._replicas or 1
        self._threads = share([cpu for cpu, _ in found], replicas)
        if not self._threads:
            total = sum(cpu for cpu, _ in found)
            raise UsageError(f"--replicas {replicas}: the cluster has {total} CPUs, and each replica needs one")
        self._resources = {"num_cpus": self._threads}
        return replicas

    def replica(self, options: HostOptions) -> RayReplica:
        actor = ray.remote(Replica).options(**self._resources, max_concurrency=CALLS, max_restarts=0)
        return RayReplica(actor.remote(options, self._threads))


class RayReplica:
    """A `Handle` of an actor. An error within it stays what it was; that it is gone is LostError."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def start(self, directory: str, choices: Choices) -> Facts | Failed:
        found: Facts | Failed = await _reply(self._actor.start.remote(directory, choices))
        return found

    async def act(self, asked: Asked) -> Reply | Refused:
        found: Reply | Refused = await _reply(self._actor.act.remote(asked))
        return found

    async def pulse(self) -> Pulse:
        found: Pulse = await _reply(self._actor.pulse.remote())
        return found

    async def drain(self, seconds: float) -> None:
        await _reply(self._actor.drain.remote(seconds))

    def cancel(self, number: int) -> None:
        self._actor.cancel.remote(number)

    def reset(self, robot: str) -> None:
        self._actor.reset.remote(robot)

    def leave(self, robot: str, number: int) -> None:
        self._actor.leave.remote(robot, number)

    def kill(self) -> None:
        ray.kill(self._actor)


async def _reply(reference: Awaitable[T]) -> T:
    """What an actor's method gave."""
    try:
        return await reference
    except RayTaskError:
        raise
    except RayError as error:
        raise LostError(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}") from error
