"""Where a bench computes what is not timed: frames' predictions and episodes. Here, or spread over a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from edge_vla.bench import closed_loop, predictions
from edge_vla.bench.messages import System
from edge_vla.bench.predictions import Job
from edge_vla.bench.result import EpisodeRow
from edge_vla.errors import EdgeVLAError


class Place(Protocol):
    """What comes back is the same from every place, to the bit."""

    def predict_all(
        self, jobs: Sequence[Job], frames: Path, limit: int | None, forced: Path | None, parallel: int
    ) -> list[EdgeVLAError | None]:
        """Write every job's file, teacher-forced along `forced` (None: its own); what stopped a job, in its place."""
        ...

    def run_all(
        self,
        systems: Mapping[str, System],
        environment: str,
        kinds: Sequence[str],
        episodes: int,
        frames: Path,
        delays_ms: Mapping[str, Sequence[float]] | None,
        parallel: int,
        on_progress: Callable[[str], None],
    ) -> dict[str, list[EpisodeRow] | EdgeVLAError]:
        """Every system's episodes, kind by kind in the order of starts; what stopped a system, in its place."""
        ...


class Here:
    """This machine: a process for each system, and for each kind of episode."""

    def predict_all(
        self, jobs: Sequence[Job], frames: Path, limit: int | None, forced: Path | None, parallel: int
    ) -> list[EdgeVLAError | None]:
        return predictions.predict_all(jobs, frames, limit, forced, parallel)

    def run_all(
        self,
        systems: Mapping[str, System],
        environment: str,
        kinds: Sequence[str],
        episodes: int,
        frames: Path,
        delays_ms: Mapping[str, Sequence[float]] | None,
        parallel: int,
        on_progress: Callable[[str], None],
    ) -> dict[str, list[EpisodeRow] | EdgeVLAError]:
        return closed_loop.run_all(systems, environment, kinds, episodes, frames, delays_ms, parallel, on_progress)
