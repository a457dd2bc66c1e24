"""Reading the result files of studies: JSON of any version -> provenance and the study's dataclass.

Older versions go through `results_v1`; a version that is newer than this checkout knows is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import results_v1
from benchmarks.checkouts import CheckoutsResult
from benchmarks.commands import CommandsResult
from benchmarks.cpu.results import CpuPeersResult, DraftsResult, EngineResult, SoakResult, TargetsResult
from benchmarks.demo_policy.results import LadderResult, PolicyEvaluation, ReproductionResult
from benchmarks.first_run import FirstRunResult
from benchmarks.formats.results import FormatsResult, InteropResult
from benchmarks.gpu.counted.result import CountedResult
from benchmarks.gpu.int4_as_int8 import Int4AsInt8Result
from benchmarks.gpu.model.result import ModelResult
from benchmarks.gpu.result import GpuResult
from benchmarks.gpu.tune import TuneResult
from benchmarks.robot.results import RobotActResult
from benchmarks.robot.ros2_results import Ros2Result
from benchmarks.serve.fleet import FleetResult
from benchmarks.serve.fuzz import FuzzResult
from benchmarks.serve.results import (
    EpisodesResult,
    FairnessResult,
    OverheadResult,
    ServeFaultsResult,
    ServeSoakResult,
)
from benchmarks.study import Body
from benchmarks.tensorrt.results import EngineBuildsResult, Int8VisionResult
from benchmarks.watcher_cost import WatcherCostResult
from edge_vla import typed_json
from edge_vla.bench import result_file
from edge_vla.bench.provenance import Provenance
from edge_vla.bench.result import KIND as BENCH
from edge_vla.bench.result import Result
from edge_vla.errors import FrameError

BODIES: Final[Mapping[str, type[Body]]] = {
    body.KIND: body
    for body in (
        CheckoutsResult,
        CommandsResult,
        CountedResult,
        DraftsResult,
        CpuPeersResult,
        EngineBuildsResult,
        EngineResult,
        EpisodesResult,
        FairnessResult,
        FirstRunResult,
        FleetResult,
        FormatsResult,
        FuzzResult,
        Int4AsInt8Result,
        Int8VisionResult,
        InteropResult,
        LadderResult,
        ModelResult,
        OverheadResult,
        PolicyEvaluation,
        ReproductionResult,
        RobotActResult,
        Ros2Result,
        ServeFaultsResult,
        ServeSoakResult,
        SoakResult,
        TargetsResult,
        WatcherCostResult,
    )
}


ON_GPUS: Final[Mapping[Any, type[GpuResult | TuneResult]]] = {"gpu": GpuResult, "gpu-tiles": TuneResult}


@dataclass(frozen=True)
class ResultFile:
    """A result as read. `body` is None for a kind that no code here writes any more."""

    path: Path
    provenance: Provenance
    body: Body | Result | GpuResult | TuneResult | None


def read_result(path: Path) -> ResultFile:
    """Raises FrameError for a file that is missing, damaged, no result, or of a newer version."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FrameError(f"{path} is not a readable result: {error}") from error
    if not isinstance(raw, dict):
        raise FrameError(f"{path} is no result: expected a JSON object with a kind, a version and a provenance")
    if raw.get("kind") == BENCH:
        bench = result_file.from_json(raw)
        return ResultFile(path, bench.provenance, bench)
    try:
        if (kind := ON_GPUS.get(raw.get("kind"))) is not None:
            found = typed_json.from_json(kind, raw)
            return ResultFile(path, found.provenance, found)
        return ResultFile(path, *_parse(raw))
    except (ValueError, KeyError, TypeError) as error:
        raise FrameError(f"{path} cannot be read: {error!r}; make it again with this checkout") from error


def _parse(raw: Mapping[str, Any]) -> tuple[Provenance, Body | None]:
    kind, version = raw.get("kind"), raw.get("version", 0)
    known = BODIES.get(kind) if isinstance(kind, str) else None
    if known is None and "provenance" in raw:
        return typed_json.from_json(Provenance, raw["provenance"]), None
    if known is None or version < known.VERSION:
        return results_v1.provenance(raw), results_v1.body(raw)
    if version > known.VERSION:
        raise ValueError(f"version {version} of {kind!r}, expected at most {known.VERSION}: update this checkout")
    fields = {name: value for name, value in raw.items() if name not in ("kind", "version", "provenance")}
    return typed_json.from_json(Provenance, raw["provenance"]), typed_json.from_json(known, fields)
