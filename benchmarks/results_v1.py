"""Results as earlier code wrote them, in today's dataclasses. Figures pass unchanged; only names are new.

One converter for each kind. Kinds without one were written by scripts that are gone; nothing shows them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from benchmarks.commands import CommandCost, CommandsResult, EtaError
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
from benchmarks.demo_policy.results import (
    ClosedLoopRates,
    ConditionComparison,
    DimensionAccuracy,
    FrameAccuracy,
    LadderResult,
    Memorised,
    PolicyEvaluation,
    ReproductionResult,
    Rung,
    StageCost,
)
from benchmarks.formats.results import (
    FLOOR,
    BitsSpent,
    Comparison,
    FormatRow,
    FormatsResult,
    InteropCase,
    InteropResult,
    Share,
)
from benchmarks.study import Body, Target
from edge_vla.bench.provenance import Provenance
from edge_vla.bench.result import Interval
from edge_vla.device.limits import Ceilings

Json = Mapping[str, Any]


@dataclass(frozen=True)
class FormatOutcome:
    """A format of the adapted policy: agreement with bf16 on recorded frames, and successes of so many episodes."""

    name: str
    same_token: Share | None
    same_action: Share | None
    high_margin_flips: int | None
    high_margin_tokens: int | None
    pick: tuple[int, int] | None  # successes, episodes
    put: tuple[int, int] | None


@dataclass(frozen=True)
class AdapterFormats:
    """What `compare_formats` measured before it wrote the result of a bench."""

    KIND: ClassVar = "demo formats"
    VERSION: ClassVar = 2

    rows: list[FormatOutcome]


OLD_FLOOR: Final = "bf16, rounding shaken"
EVALUATION: Final = "demo policy, plain torch"  # how the results of `evaluate` began, which had no kind
TOLERANCE: Final = 0.03


def provenance(raw: Json) -> Provenance:
    """From `environment`, or from the document itself; what was not kept is None or empty."""
    found = raw.get("environment", raw)
    return Provenance(
        command=found["command"],
        commit=found["commit"],
        time=found.get("time", ""),
        device=found["device"],
        cores=found["cores"],
        threads=found["threads"],
        load_average=found.get("load_average"),
        python=found["python"],
        torch=found["torch"],
        edge_vla=found.get("edge_vla", ""),
    )


def body(raw: Json) -> Body | None:
    """The dataclass of an old result; None where there is none."""
    if str(raw.get("what", "")).startswith(EVALUATION):
        return _evaluation(raw)
    convert = CONVERTERS.get(raw.get("kind", ""))
    return None if convert is None else convert(raw)


def _targets(raw: Json) -> list[Target]:
    return [
        Target(claim["what"], claim["value"], "at least", float(claim["at least"]))
        if "at least" in claim
        else Target(claim["what"], claim["value"], "at most", float(claim["at most"]))
        for claim in raw.get("claims", ())
    ]


def _commands(raw: Json) -> CommandsResult:
    costs = [
        CommandCost(
            arguments=one["arguments"],
            runs=one["runs"],
            wall_s=one["seconds"],
            fastest_wall_s=one["fastest_seconds"],
            cpu_s=one.get("cpu_seconds"),
            peak_bytes=one["peak_bytes"],
            last_line=one["last_line"],
            eta_errors=[EtaError(eta["at_s"], eta["over_actual"]) for eta in one.get("foretold", ())],
        )
        for one in raw["commands"]
    ]
    return CommandsResult(costs, dict(raw["disk_bytes"]))


def _engine(raw: Json) -> EngineResult:
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


def _soak(raw: Json) -> SoakResult:
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


def _drafts(raw: Json) -> DraftsResult:
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


def _formats(raw: Json) -> FormatsResult:
    return FormatsResult(
        question={"mixed bits": "bits", "rounding methods": "methods"}[raw["kind"]],
        model=raw["model"],
        frames=raw["frames"],
        episodes=raw["episodes"],
        margin_floor=raw.get("lead_floor"),
        rows=[_format(_renamed(name), row) for name, row in raw["rows"].items()],
    )


def _renamed(name: str) -> str:
    return FLOOR if name == OLD_FLOOR else name.replace("int4's whole bytes", "int4's total bytes")


def _format(name: str, row: Json) -> FormatRow:
    against = row.get("against")
    return FormatRow(
        name=name,
        recipe=row.get("recipe"),
        bits_per_weight=row.get("bits_per_weight"),
        stored_bytes=row.get("bytes"),
        calibration_leakage=row.get("calibration_frames_among_these"),
        kernels=dict(row.get("kernels", {})),
        same_token=Interval(**row["same_token"]),
        within_one_bin=row["within_one_bin"],
        kl=Interval(**row["kl"]),
        kl_percentiles=dict(row["kl_of_frames"]),
        high_margin_tokens=row["clear_leads"],
        high_margin_flips=row["clear_leads_flipped"],
        against=against and Comparison(
            _renamed(against["name"]), Share(**against["kl_closed"]), Interval(**against["same_token_difference"])
        ),
        spent=_spent(row["spent"]) if "spent" in row else None,
    )  # fmt: skip


def _spent(found: Json) -> BitsSpent:
    return BitsSpent(
        bits_per_weight=found["bits_per_weight"],
        predicted_kl=found["predicted_kl"],
        predicted_kl_mixed=found["predicted_kl_mixed"],
        predicted_kl_uniform=found["predicted_kl_same"],
        residual_kept=found["departures_kept"],
        vision_bits=found["vision"] and found["vision"]["bits"],
        formats=dict(found["forms"]),
    )


def _adapter_formats(raw: Json) -> AdapterFormats:
    rows = list[FormatOutcome]()
    for formats in raw["arms"].values():
        floor = next(row["noise_floor"] for row in formats.values() if "noise_floor" in row)
        rows.append(_outcome(FLOOR, floor, {}))
        rows += [_outcome(name, row.get("agreement"), row["closed_loop"]) for name, row in formats.items()]
    return AdapterFormats(rows)


def _outcome(name: str, agreement: Json | None, closed_loop: Json) -> FormatOutcome:
    pick, put = (
        (closed_loop[kind]["success"], closed_loop[kind]["episodes"]) if kind in closed_loop else None
        for kind in ("pick", "put")
    )
    return FormatOutcome(
        name=name,
        same_token=Share(**agreement["teacher_forced"]) if agreement else None,
        same_action=Share(**agreement["exact_action"]) if agreement else None,
        high_margin_flips=agreement["high_margin_flips"] if agreement else None,
        high_margin_tokens=agreement["high_margin_tokens"] if agreement else None,
        pick=pick,
        put=put,
    )


def _interop(raw: Json) -> InteropResult:
    cases = [
        InteropCase(
            format=case["form"],
            bits=case["bits"],
            loader=case["loader"],
            linear_class=case["linear"],
            versions=dict(case["versions"]),
            rows=case["rows"],
            largest_logit=case["magnitude"],
            difference=case["difference"],
            rounding=case["rounding"],
            same_token=case["same_token"],
        )
        for case in raw["cases"]
    ]
    return InteropResult(raw["source"], cases)


def _evaluation(raw: Json) -> PolicyEvaluation:
    rates = {
        _condition(name): ClosedLoopRates(
            episodes=row["episodes"],
            success=row["success"],
            success_interval=_pair(row["success 95%"]),
            wrong_object=row["wrong object"],
            wrong_object_interval=_pair(row["wrong object 95%"]),
            mean_steps=row["steps of successes"] if row["success"] else None,
        )
        for name, row in raw["closed loop"].items()
    }
    frames = {_condition(name): _accuracy(row) for name, row in raw["free running"].items()}
    return PolicyEvaluation(rates, frames)


def _condition(name: str) -> str:
    """`pick, wording kept aside` -> `pick, held-out wording`."""
    return name.replace("wording kept aside", "held-out wording").replace("wording trained", "trained wording")


def _pair(values: list[float]) -> tuple[float, float]:
    low, high = values
    return low, high


def _accuracy(row: Json) -> FrameAccuracy:
    names = [key.removeprefix("exact ") for key in row if key.startswith("exact ")]
    return FrameAccuracy(
        dimensions={
            name: DimensionAccuracy(row[f"exact {name}"], row[f"close {name}"], row[f"error {name}"]) for name in names
        },
        moving_frames=int(row["moving"]),
        dx_sign=row["dx sign"],
        named_target=row["named target"],
        gripper_decision=row["grip decided"],
    )


def _ladder(raw: Json) -> LadderResult:
    return LadderResult({name: Rung(
        stage=rung["stage"], steps=rung["steps"], pictures=rung["pictures"], **_learned(rung["free running"])
    ) for name, rung in raw["rungs"].items()})  # fmt: skip


def _learned(row: Json) -> dict[str, Any]:
    if "prompts" not in row:
        found = {"fresh": _accuracy(row), "fresh_frames": row["frames"], "dx_sign_interval": _pair(row["dx sign 95%"])}
        return {"memorised": None, **found}
    memorised = Memorised(
        frames=row["frames"],
        prompts=row["prompts"],
        tokens=row["tokens"],
        within_one_bin=row.get("tokens within one bin"),
        whole_actions=row["all seven"],
        exact_by_dimension={key.removeprefix("exact "): row[key] for key in row if key.startswith("exact ")},
        dx_sign=row["dx sign"],
    )
    return {"memorised": memorised, "fresh": None, "fresh_frames": None, "dx_sign_interval": None}


def _reproduction(raw: Json) -> ReproductionResult:
    conditions = {
        _condition(name): ConditionComparison(
            shipped=row["shipped"],
            shipped_interval=_pair(row["shipped 95%"]),
            reproduced=row["reproduced"],
            reproduced_interval=_pair(row["reproduced 95%"]),
            reproduced_wrong_object=row["reproduced wrong object"],
            tolerance=TOLERANCE,
        )
        for name, row in raw["trials"].items()
    }
    stages = {name: StageCost(cost["pictures"], cost["seconds"]) for name, cost in raw["stages"].items()}
    return ReproductionResult(stages, conditions)


CONVERTERS: Final[Mapping[str, Callable[[Json], Body]]] = {
    "commands": _commands,
    "demo formats": _adapter_formats,
    "demo ladder": _ladder,
    "demo reproduction": _reproduction,
    "drafts": _drafts,
    "engine": _engine,
    "interop": _interop,
    "mixed bits": _formats,
    "rounding methods": _formats,
    "steady": _soak,
}
