"""Old results of the format studies, in today's dataclasses: figures unchanged, names new."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

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
from edge_vla.bench.result import Interval

Json = Mapping[str, Any]

OLD_FLOOR: Final = "bf16, rounding shaken"


def formats(raw: Json) -> FormatsResult:
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


def interop(raw: Json) -> InteropResult:
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
