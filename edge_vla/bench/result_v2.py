"""Results of version 2 in the shape of version 3, JSON to JSON. Every number passes unchanged.

Left out: an agreement's `mcnemar_exact_action`, which was always null, and drift windows longer than any episode.
Sentences (notes, reasons) stay as they were written.
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
DEVICE: Final = ("cpu", "jetson", "gpus", "temperatures_c", "power", "publishable", "unpublishable_because")
CUDA: Final = {f"nvml_{name}_bytes": f"{name}_bytes" for name in ("process_peak", "device_peak", "device_start")}


def upgraded(raw: Json) -> Json:
    """`raw` is a result of version 2. Raises KeyError or ValueError where it is not."""
    measured = raw.get("reference_measured") or {}
    return {
        **_without(raw, "reference_measured", "environment"),
        "version": VERSION,
        "model": _renamed(raw["model"], speaks_for="scope"),
        "provenance": _provenance(raw["environment"]),
        "reference": {
            **raw["reference"],
            "performance": _performance(measured, measured.get("latency")),
            "rates": measured.get("closed_loop_rates"),
            "failed": measured.get("failed"),
        },
        "gates_declared": _declared(raw["gates_declared"]),
        "floors": {FLOORS.get(name, name): _agreement(floor) for name, floor in raw["floors"].items()},
        "candidates": [_candidate(row) for row in raw["candidates"]],
        "peers": [_peer(row) for row in raw["peers"]],
        "limits": _limits(raw["limits"]),
        "gates": [
            {**_renamed(gate, side="system"), "name": GATES.get(gate["name"], gate["name"])} for gate in raw["gates"]
        ],
    }


def _renamed(raw: Json, **names: str) -> Json:
    """`raw` with each key that is a name here under its new one."""
    return {names.get(key, key): value for key, value in raw.items()}


def _without(raw: Json, *keys: str) -> Json:
    return {key: value for key, value in raw.items() if key not in keys}


def _provenance(raw: Json) -> Json:
    state = {key: raw[key] for key in DEVICE if key in raw}
    return {**_without(raw, *DEVICE), "device_state": state or None}


def _declared(raw: Json) -> Json:
    bounds = {bits: _renamed(row, clear_leads_flipped="high_margin_flips") for bits, row in raw["by_bits"].items()}
    closed = raw["closed_loop"]
    return {**raw, "by_bits": bounds, "closed_loop": closed and _renamed(closed, table="environment")}


def _candidate(raw: Json) -> Json:
    artifact = _renamed(raw["artifact"], calibration_frames_among_these="calibration_leakage")
    evidence = artifact["sensitivity"]
    if evidence is not None:
        artifact["sensitivity"] = json.loads(SensitivityReport.from_json(evidence).to_json())
    return {
        "name": raw["name"],
        "artifact": artifact,
        **_evaluated(raw),
        "performance": _performance(raw, raw["latency"]),
        "closed_loop": _closed_loop(raw["closed_loop"]),
        "stage_profile": _stage_profile(raw.get("waterfall")),
        "against_peers": raw.get("against_peers", {}),
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
        "agreement": agreement and _agreement(agreement),
        "units_off": agreement and agreement.get("units_off"),
        "worst_frames": raw.get("worst_frames", []),
    }


def _agreement(raw: Json) -> Json:
    apart, margins, gripper = raw["bins_apart"], raw["margins"], raw["gripper"]
    shift = gripper["shift_steps"] or {}
    return {
        **_without(raw, "mcnemar_exact_action", "units_off"),
        "bins_apart": {
            "overall": _without(apart, "histogram", "by_dimension"),
            "by_dimension": apart["by_dimension"],
            "histogram": apart["histogram"],
        },
        "gripper": {
            **_without(gripper, "shift_steps"),
            "shift_mean_steps": shift.get("mean"),
            "shift_max_steps": shift.get("max"),
        },
        "kl": _renamed(raw["kl"], all="overall"),
        "margins": {
            **margins,
            "deciles": [_renamed(flips, **{"from": "low", "to": "high"}) for flips in margins["deciles"]],
        },
        "drift": [{"window": int(steps), **drift} for steps, drift in raw["drift"].items() if drift is not None],
    }


def _performance(raw: Json, latency: Json) -> Json:
    memory = raw.get("memory")
    if memory:
        cuda = memory["cuda"]
        memory = {**_renamed(memory, steady_bytes="loaded_bytes"), "cuda": cuda and _renamed(cuda, **CUDA)}
    return {
        "latency": {mode: _latency(one) for mode, one in (latency or {}).items()},
        "memory": memory,
        "kernels": raw.get("kernels") or {},
        "harness_share": raw.get("harness_share"),
        "timed_tokens": raw.get("timed_tokens"),
        "ratio_to": raw.get("ratio_to") or {},
    }


def _latency(raw: Json) -> Json:
    file = raw["samples"]
    samples = {"file": file, "sha256": raw["samples_sha256"]} if file else None
    kept = _renamed(_without(raw, "samples", "samples_sha256"), p50_interval="p50_interval_ms")
    return {**kept, "samples": samples}


def _closed_loop(raw: Json) -> Json:
    if raw is None:
        return None
    regimes = [
        {
            "name": name,
            **{key: regime[key] for key in ("reference", "candidate", "by_kind")},
            "overall": _without(regime, "reference", "candidate", "by_kind"),
        }
        for name, regime in raw["regimes"].items()
    ]
    return {**_renamed(raw, world="environment"), "regimes": regimes}


def _stage_profile(raw: Json) -> Json:
    return raw and {**_renamed(raw, **{"prompt tokens": "prompt_tokens"}), "limits": _limits(raw["limits"])}


def _limits(raw: Json) -> Json:
    return raw and {**raw, "ceilings": _renamed(raw["ceilings"], copy_bytes_per_s="read_bytes_per_s")}
