"""Figures for github-action-benchmark: two lists, because a tool of its has one direction only.

Names are stable from run to run, for it draws a line through equal names. Its own alert
threshold is 200 %: set one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from edge_vla.bench.reports.systems import Result, Side, sides

Entry = dict[str, Any]


def smaller_is_better(result: Result) -> str:
    """For `customSmallerIsBetter`: latency, memory, size, disagreement."""
    return _text(entry for side in sides(result) if side.role != "floor" for entry in _smaller(result, side))


def bigger_is_better(result: Result) -> str:
    """For `customBiggerIsBetter`: rate and agreement."""
    return _text(entry for side in sides(result) if side.role != "floor" for entry in _bigger(result, side))


def _smaller(result: Result, side: Side) -> Iterator[Entry]:
    for mode, latency in side.latency.items():
        extra = f"n={latency['queries']}"
        yield _entry(result, side, f"{mode}, p50", "ms", latency["p50_ms"], latency.get("p50_interval"), extra)
        yield _entry(result, side, f"{mode}, p99", "ms", latency.get("p99_ms"), None, extra)
    yield _entry(result, side, "peak memory", "MiB", _mib((side.memory or {}).get("peak_bytes")))
    yield _entry(result, side, "on disk", "MiB", _mib(side.disk_bytes))
    if side.agreement:
        same = side.agreement["exact_action"]
        bounds = [100 * (1 - same["high"]), 100 * (1 - same["low"])]
        yield _entry(result, side, "other action", "%", 100 * (1 - same["mean"]), bounds, _frames(side.agreement))


def _bigger(result: Result, side: Side) -> Iterator[Entry]:
    for mode, latency in side.latency.items():
        yield _entry(result, side, f"{mode}, rate", "Hz", latency["hz"], None, f"n={latency['queries']}")
    if side.agreement:
        for key, name in (("teacher_forced", "same token"), ("exact_action", "same action")):
            same = side.agreement[key]
            bounds = [100 * same["low"], 100 * same["high"]]
            yield _entry(result, side, name, "%", 100 * same["mean"], bounds, _frames(side.agreement))


def _entry(
    result: Result,
    side: Side,
    what: str,
    unit: str,
    value: float | None,
    bounds: list[float] | None = None,
    extra: str = "",
) -> Entry:
    entry: Entry = {
        "name": f"{result['model']['name']} / {side.name} / {what}",
        "unit": unit,
        "value": None if value is None else round(value, 4),
    }
    if bounds:
        entry["range"] = f"{bounds[0]:.4g} to {bounds[1]:.4g}"
    environment = result["environment"]
    entry["extra"] = "\n".join(part for part in (extra, environment["device"], environment["commit"]) if part)
    return entry


def _text(entries: Iterator[Entry]) -> str:
    return json.dumps([entry for entry in entries if entry["value"] is not None], indent=1, ensure_ascii=False) + "\n"


def _mib(size: int | None) -> float | None:
    return None if size is None else size / 2**20


def _frames(agreement: Result) -> str:
    return f"{agreement['frames']} frames of {agreement['episodes']} episodes"
