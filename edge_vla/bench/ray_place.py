"""A bench over a Ray cluster: frames and episodes in parts, a task each, merged to what one process gives.

Stays here: what is timed, stage profiles, gates and reports, and peers, whose environments other machines lack. A task
that a machine took with it is done again elsewhere, for it depends on nothing but its inputs. Imports Ray, so nothing
imports this unless it was asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from edge_vla import errors
from edge_vla.bench import shards
from edge_vla.bench.closed_loop import BLOCK
from edge_vla.bench.messages import Failure, System
from edge_vla.bench.place import Here
from edge_vla.bench.predictions import Job
from edge_vla.bench.result import EpisodeRow
from edge_vla.cluster import connect, machines
from edge_vla.data import read_frames
from edge_vla.errors import BackendError, EdgeVLAError

LOCAL: Final = "local"  # in place of an address: this machine
PROCESS_BYTES: Final = 600_000_000  # what a process holds beside its weights


class RayPlace:
    """A `Place`. BackendError where no Ray answers at `address`, or where a machine differs from this one."""

    def __init__(self, address: str) -> None:
        connect(None if address == LOCAL else address)
        found = machines()
        gpus = sum(gpu for _, gpu in found)
        self._gpus = gpus > 0
        self._slots = gpus or sum(cpu for cpu, _ in found)
        self._threads = os.environ.get(shards.THREADS)
        self._check()

    def predict_all(
        self, jobs: Sequence[Job], frames: Path, limit: int | None, forced: Path | None, parallel: int
    ) -> list[EdgeVLAError | None]:
        local = [job for job in jobs if job.system.peer is not None]
        spread = [job for job in jobs if job.system.peer is None]
        read = read_frames(frames)[:limit]
        parts = shards.ranges(len(read), -(-self._slots // max(1, len(spread))))
        packed = [ray.put(shards.pack(read[part.start : part.stop])) for part in parts]
        along = [None if forced is None else shards.pack_tokens(forced, part) for part in parts]
        asked = {
            job.file: [
                self._ask(job.system, shards.predict_part, job.floor, files, tokens)
                for files, tokens in zip(packed, along, strict=True)
            ]
            for job in spread
        }
        found: dict[Path, EdgeVLAError | None] = {}
        for job in spread:
            try:
                shards.merge([_result(one, job.system.name) for one in asked[job.file]], job.file)
                found[job.file] = None
            except EdgeVLAError as error:
                found[job.file] = error
        mine = Here().predict_all(local, frames, limit, forced, parallel) if local else []
        found |= dict(zip((job.file for job in local), mine, strict=True))
        return [found[job.file] for job in jobs]

    def run_all(
        self,
        systems: Mapping[str, System],
        environment: str,
        kinds: Sequence[str],
        episodes: int,
        frames: Path,
        delays_ms: Mapping[str, Sequence[float]] | None,
        parallel: int,  # noqa: ARG002
        on_progress: Callable[[str], None],
    ) -> dict[str, list[EpisodeRow] | EdgeVLAError]:
        all_blocks = shards.blocks(kinds, episodes, BLOCK)
        parts = shards.ranges(len(all_blocks), -(-self._slots // len(systems)))
        files = ray.put(shards.pack(read_frames(frames)[:1]))
        asked = {
            name: [
                self._ask(
                    system,
                    shards.run_part,
                    environment,
                    all_blocks[part.start : part.stop],
                    files,
                    None if delays_ms is None else list(delays_ms[name]),
                )
                for part in parts
            ]
            for name, system in systems.items()
        }
        return {name: self._rows(name, asked[name], len(kinds) * episodes, on_progress) for name in systems}

    def _rows(
        self, name: str, asked: Sequence[Any], episodes: int, on_progress: Callable[[str], None]
    ) -> list[EpisodeRow] | EdgeVLAError:
        rows = list[EpisodeRow]()
        try:
            for one in asked:
                rows += _result(one, name)
                on_progress(f"{name}: {len(rows)} of {episodes} episodes")
        except EdgeVLAError as error:
            on_progress(f"{name}: {error}")
            return error
        return rows

    def _ask(self, system: System, function: Callable[..., Any], *arguments: Any) -> Any:
        """A part of a system's work, where there is room for it."""
        gpus = 1 if self._gpus and system.device != "cpu" else 0
        options = {"num_cpus": 1, "num_gpus": gpus, "memory": _held_bytes(system)}
        return ray.remote(_attempt).options(**options).remote(function, _anywhere(system), *arguments, self._threads)

    def _check(self) -> None:
        """BackendError where a machine of the cluster would round otherwise than this one."""
        mine = shards.machine()
        for node in ray.nodes():
            if not node["Alive"]:
                continue
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            options = {"num_cpus": 0, "num_gpus": 1 if node["Resources"].get("GPU") else 0}
            task = ray.remote(shards.machine).options(**options, scheduling_strategy=there).remote()
            theirs = _result(task, node["NodeManagerAddress"])
            if theirs != mine:
                raise BackendError(
                    f"{node['NodeManagerAddress']} is {theirs}, this machine is {mine}: predictions would differ; "
                    "bench on a cluster of one kind of machine, with one edge-vla and torch"
                )


def _attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives; what a user can cause comes back as a value, in its own words."""
    try:
        return function(*arguments)
    except EdgeVLAError as error:
        return Failure(type(error).__name__, str(error))


def _result(task: Any, name: str) -> Any:
    try:
        found = ray.get(task)
    except RayError as error:
        reason = str(error).strip().partition("\n")[0]
        raise BackendError(f"{name}: lost on the cluster: {reason}; bench again") from error
    if isinstance(found, Failure):
        kind = getattr(errors, found.error, None) if found.error in errors.__all__ else None
        raise (kind or BackendError)(found.message)
    return found


def _anywhere(system: System) -> System:
    """With absolute paths: every machine must have the same files in the same place."""
    paths = [_absolute(path) for path in (system.path, *system.adapters)]
    statistics = None if system.statistics is None else _absolute(system.statistics)
    return replace(system, path=paths[0], adapters=tuple(paths[1:]), statistics=statistics)


def _absolute(path: str) -> str:
    return str(Path(path).resolve()) if Path(path).exists() else path


def _held_bytes(system: System) -> int:
    """About what a system will hold: the files of its folder, and a process."""
    folder = Path(system.path)
    files = sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.is_dir() else 0
    return PROCESS_BYTES + files * (2 if system.dtype == "fp32" else 1)
