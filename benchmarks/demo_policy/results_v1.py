"""Old results of the demo policy studies, in today's dataclasses: figures unchanged, names new."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

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
from benchmarks.formats.results import FLOOR, Share

Json = Mapping[str, Any]

TOLERANCE: Final = 0.03


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


def adapter_formats(raw: Json) -> AdapterFormats:
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


def evaluation(raw: Json) -> PolicyEvaluation:
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


def ladder(raw: Json) -> LadderResult:
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


def reproduction(raw: Json) -> ReproductionResult:
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
