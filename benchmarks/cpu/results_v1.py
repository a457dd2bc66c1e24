"""Old results of the CPU studies, in today's dataclasses: figures unchanged, names new."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.cpu.llamacpp import LlamaCppFacts
from benchmarks.cpu.results import (
    EAGER,
    LLAMA_CPP,
    PACKED,
    Acceptance,
    DraftCost,
    DraftsResult,
    EngineResult,
    SoakResult,
    Spread,
    StageTimes,
    StrategyResult,
    SystemTimes,
)
from benchmarks.study import Target
from edge_vla.bench.result import Interval
from edge_vla.device.limits import Ceilings

Json = Mapping[str, Any]


def _targets(raw: Json) -> list[Target]:
    return [
        Target(claim["what"], claim["value"], "at least", float(claim["at least"]))
        if "at least" in claim
        else Target(claim["what"], claim["value"], "at most", float(claim["at most"]))
        for claim in raw.get("claims", ())
    ]


def engine(raw: Json) -> EngineResult:
    layers, limits, peer = raw["layers measured"], raw["predicted ms"], raw.get(LLAMA_CPP)
    ceilings = raw["ceilings"]
    (rate,) = (key for key in raw if key.startswith("prefill, share of "))
    measured = {PACKED: layers["packed"], EAGER: layers["eager"], LLAMA_CPP: layers["of"] if peer else 0}
    return EngineResult(
        model=raw["model"],
        bits=raw["bits"],
        kernels=dict(raw["kernels"]),
        layers=layers["of"],
        prompt_rows=raw["prompt rows"],
        ceilings=Ceilings(ceilings["copy_bytes_per_s"], ceilings["gemm_flops"], ceilings["how"]),
        step_limit_ms=limits["step, bytes alone"],
        prefill_limit_ms=limits["prefill, arithmetic alone"],
        arithmetic=rate.removeprefix("prefill, share of ").removesuffix(" rate"),
        systems=[_system(raw, name, count) for name, count in measured.items() if count],
        peak_bytes=raw["peak_bytes"],
        llama_cpp=peer and LlamaCppFacts(
            bytes=peer["bytes"], head_bytes=peer["head_bytes"], version=peer["llama_cpp_python"],
            built_for=peer["built for"], format=peer["format"], threads=peer["threads"],
        ),
        targets=_targets(raw),
    )  # fmt: skip


def _system(raw: Json, name: str, layers: int) -> SystemTimes:
    prefix = "" if name == PACKED else f"{name} "

    def times(which: str) -> StageTimes:
        found = raw[f"milliseconds, {which}"]
        return StageTimes(found[f"{prefix}prefill"], found[f"{prefix}step"], found.get(f"{prefix}verify"))

    parts = raw["decoder part of an action, ms"]
    accepted = parts.get("packed, a draft that is right") if name == PACKED else None
    vision = raw.get("vision, ms, median", {}).get(f"{prefix}vision")
    return SystemTimes(name, layers, times("median"), times("best"), parts[name], accepted, vision)


def soak(raw: Json) -> SoakResult:
    turns, alone = raw["compared in turns"], raw["alone"]

    def spread(name: str, row: Json) -> Spread:
        return Spread(name, row["actions"], row["mean_ms"], row["p50_ms"], row["p99_ms"])

    systems = ("reference", "artifact", "artifact, session")
    reference, artifact, session = (spread(name, turns[name]) for name in systems)
    return SoakResult(
        kernels=dict(raw["kernels"]),
        frames=raw["frames"],
        reference=reference,
        artifact=artifact,
        session=session,
        controls=[spread(name, row) for name, row in turns.items() if name not in systems],
        alone=spread("artifact, session", alone),
        growth_mib_per_1000_actions=alone["MiB per 1000 actions"],
        resident_mib=alone["resident_MiB"],
        tensors_allocated_per_action=alone["tensors made per action"],
        bytes_kept_per_action=alone["bytes kept per action"],
        targets=_targets(raw),
    )


def drafts(raw: Json) -> DraftsResult:
    times = raw.get("times")
    return DraftsResult(
        kernels=dict(raw["kernels"]),
        world=raw["world"],
        episodes=raw["episodes"],
        episodes_with_all_strategies=raw["episodes with every proposal"],
        training_episodes=raw["episodes learnt from"],
        preprocess_and_vision_ms=times and times["preprocess and vision ms"],
        strategies=[
            _strategy(name, mode, row, (times or {}).get(mode, {}).get(name))
            for mode, rows in raw["modes"].items()
            for name, row in rows.items()
            if row is not None
        ],
    )


def _strategy(name: str, mode: str, row: Json, cost: Json | None) -> StrategyResult:
    return StrategyResult(
        strategy=name,
        bitwise_exact=mode == "strict",
        actions=row["actions"],
        different_actions=row["actions that differ"],
        different_tokens=row["tokens that differ"],
        passes_per_action=Interval(**row["passes per action"]),
        actions_by_passes=dict(row["passes"]),
        acceptance=_acceptance(row) if "acceptance" in row else None,
        cost=None if cost is None else DraftCost(
            cost["decoder ms, mean"], cost["decoder, times faster than plain"], cost["action, times faster than plain"]
        ),
    )  # fmt: skip


def _acceptance(row: Json) -> Acceptance:
    shares, near = row["acceptance"], row["at most one bin off"]
    dims = [f"dimension {i}" for i in range(sum(name.startswith("dimension") for name in near))]
    phases = {phase: Interval(**shares[phase]) if phase in shares else None for phase in ("reach", "carry")}
    return Acceptance(
        drafted_actions=row["drafted"],
        overall=Interval(**shares["all"]),
        by_dimension=[Interval(**shares[name]) for name in dims],
        reach=phases["reach"],
        carry=phases["carry"],
        whole_action=Interval(**shares["the whole action"]),
        within_one_bin=near["all"],
        within_one_bin_by_dimension=[near[name] for name in dims],
    )
