"""Results of version 2 in the shape of version 3, JSON to JSON. Every number that is kept passes unchanged.

Left out: what version 3 no longer records (`DROPPED`), and drift windows longer than any episode. Sentences (notes,
reasons) stay as they were written.
"""

from __future__ import annotations

import json
from typing import Any, Final

from edge_vla.bench.result import ROUNDING_NOISE, VERSION
from edge_vla.sensitivity import SensitivityReport

Json = Any

FLOORS: Final = {"rounding shaken": ROUNDING_NOISE}
GATES: Final = {
    "action tokens": "invalid tokens",
    "actions": "free-running tokens",
    "clear leads": "high-margin flips",
    "gripper": "gripper flips",
    "measured": "measured to the end",
    "nothing remembered": "repeated frames",
    "timed as judged": "timed tokens",
    "tokens": "teacher-forced tokens",
    "units": "robot units",
    "unseen frames": "calibration leakage",
}
KEYS: Final = {  # wherever they stand
    "calibration_frames_among_these": "calibration_leakage",
    "clear_leads_flipped": "high_margin_flips",
    "copy_bytes_per_s": "read_bytes_per_s",
    "from": "low",
    "nvml_device_peak_bytes": "device_peak_bytes",
    "nvml_device_start_bytes": "device_start_bytes",
    "nvml_process_peak_bytes": "process_peak_bytes",
    "p50_interval": "p50_interval_ms",
    "prompt tokens": "prompt_tokens",
    "side": "system",
    "speaks_for": "scope",
    "steady_bytes": "loaded_bytes",
    "table": "environment",
    "to": "high",
    "waterfall": "stage_profile",
    "what": "description",
    "world": "environment",
}
DROPPED: Final = (
    "by_kind",
    "first_divergence",
    "harness_share",
    "histogram",
    "layer_errors",
    "mcnemar_exact_action",
    "operators",
    "series",
    "soft_action_l1",
    "teacher_forced_holm_low",
)
RECORDED: Final = ("candidate", "reference")
DEVICE: Final = ("cpu", "jetson", "gpus", "temperatures_c", "power", "publishable", "unpublishable_because")


def upgraded(raw: Json) -> Json:
    """`raw` is a result of version 2. Raises KeyError or ValueError where it is not."""
    measured = raw.get("reference_measured") or {}
    provenance = raw["environment"]
    state = {key: provenance[key] for key in DEVICE if key in provenance}
    new = _renamed(_without(raw, "reference_measured", "environment", "floors", "candidates", "peers"))
    return {
        **new,
        "version": VERSION,
        "provenance": {**_without(provenance, *DEVICE), "device_state": state or None},
        "reference": {
            **raw["reference"],
            "performance": _performance(measured, measured.get("latency")),
            "rates": measured.get("closed_loop_rates"),
            "failed": measured.get("failed"),
        },
        "floors": {FLOORS.get(name, name): _agreement(_renamed(floor)) for name, floor in raw["floors"].items()},
        "candidates": [_candidate(row) for row in raw["candidates"]],
        "peers": [_peer(row) for row in raw["peers"]],
        "gates": [{**gate, "name": GATES.get(gate["name"], gate["name"])} for gate in new["gates"]],
    }


def _renamed(raw: Json) -> Json:
    """With the keys of version 3, at any depth, and without those that it dropped."""
    if isinstance(raw, list):
        return [_renamed(part) for part in raw]
    if not isinstance(raw, dict):
        return raw
    return {KEYS.get(key, key): _renamed(part) for key, part in raw.items() if key not in DROPPED}


def _without(raw: Json, *keys: str) -> Json:
    return {key: value for key, value in raw.items() if key not in keys}


def _candidate(raw: Json) -> Json:
    evidence = raw["artifact"]["sensitivity"]
    artifact = {**_renamed(raw["artifact"]), "recipe": raw["artifact"]["recipe"], "sensitivity": None}
    if evidence is not None:
        artifact["sensitivity"] = json.loads(SensitivityReport.from_json(evidence).to_json())
    return {
        "name": raw["name"],
        "artifact": artifact,
        **_evaluated(raw),
        "performance": _performance(raw, raw["latency"]),
        "closed_loop": _closed_loop(_renamed(raw["closed_loop"])),
        "stage_profile": _renamed(raw.get("waterfall")),
        "against_peers": _renamed(raw.get("against_peers", {})),
        "failed": raw.get("failed"),
    }


def _peer(raw: Json) -> Json:
    latency = raw.get("latency")
    return {
        "name": raw["name"],
        "description": raw["what"],
        "versions": raw.get("versions") or {},
        **_evaluated(raw),
        "performance": _performance(raw, latency and {latency["mode"]: latency}),
        "failed": None if raw["ran"] else raw["why_not"] or "no reason was recorded",
    }


def _evaluated(raw: Json) -> Json:
    agreement = raw.get("agreement")
    return {
        "agreement": agreement and _agreement(_renamed(agreement)),
        "units_off": agreement and agreement.get("units_off"),
        "worst_frames": raw.get("worst_frames", []),
    }


def _agreement(raw: Json) -> Json:
    apart, kl, gripper, recorded = (raw[key] for key in ("bins_apart", "kl", "gripper", "against_recorded"))
    shift = gripper["shift_steps"] or {}
    shifts = {"shift_mean_steps": shift.get("mean"), "shift_max_steps": shift.get("max")}
    return {
        **_without(raw, "units_off"),
        "bins_apart": {"overall": _without(apart, "by_dimension"), "by_dimension": apart["by_dimension"]},
        "gripper": {**_without(gripper, "shift_steps"), **shifts},
        "kl": {**_without(kl, "all"), "overall": kl["all"]},
        "drift": [{"window": int(steps), **drift} for steps, drift in raw["drift"].items() if drift is not None],
        "against_recorded": recorded and {**recorded, **{who: recorded[who]["equal"] for who in RECORDED}},
    }


def _performance(raw: Json, latency: Json) -> Json:
    return {
        "latency": {mode: _latency(_renamed(one)) for mode, one in (latency or {}).items()},
        "memory": _renamed(raw.get("memory")),
        "kernels": raw.get("kernels") or {},
        "timed_tokens": raw.get("timed_tokens"),
        "ratio_to": raw.get("ratio_to") or {},
    }


def _latency(raw: Json) -> Json:
    samples = {"file": raw["samples"], "sha256": raw["samples_sha256"]} if raw["samples"] else None
    return {**_without(raw, "samples_sha256"), "samples": samples}


def _closed_loop(raw: Json) -> Json:
    if raw is None:
        return None
    regimes = []
    for name, regime in raw["regimes"].items():
        parts = {key: regime[key] for key in ("reference", "candidate")}
        regimes.append({"name": name, **parts, "overall": _without(regime, *parts)})
    return {**raw, "regimes": regimes}
