"""Ray: join a cluster or start one on this machine. Imports Ray, so nothing imports this unless it was asked for."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any, Final

import ray
from ray.exceptions import RayError

from edge_vla.errors import BackendError

PROBE_S: Final = 5.0
STORE_BYTES: Final = 256 << 20  # of a local Ray's shared memory: images on their way


def connect(address: str | None, processes: int = 1) -> None:
    """Join the cluster at `address`, or start one on this machine. BackendError where none answers.

    Ray sets signal handlers as it connects: set yours after it, on the main thread.
    """
    if ray.is_initialized():
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # asks no other server
    local: dict[str, Any] = {
        "address": "local",
        "num_cpus": max(os.cpu_count() or 1, processes),
        "include_dashboard": False,
        "object_store_memory": STORE_BYTES,
    }
    where = local if address is None else {"address": address}
    try:
        _probe(address)
        ray.init(**where, log_to_driver=False, configure_logging=False)
    except (ConnectionError, OSError, RuntimeError, ValueError, RayError) as error:
        place = "this machine" if address is None else address
        reason = str(error).strip().partition("\n")[0]
        raise BackendError(
            f"no Ray on {place}: {reason}; start it there with ray start --head, or leave the address out"
        ) from error


def _probe(address: str | None) -> None:
    """OSError where nothing listens at HOST:PORT: Ray would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), PROBE_S).close()


def machines() -> list[tuple[int, int]]:
    """CPUs and GPUs of each machine of the cluster that is alive."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(int(resources.get("CPU", 0)), int(resources.get("GPU", 0))) for resources in alive]
