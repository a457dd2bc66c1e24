"""Results as earlier code wrote them, in today's dataclasses: one converter for each kind.

Kinds without one were written by scripts that are gone; nothing shows them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from benchmarks.commands import CommandCost, CommandsResult, EtaError
from benchmarks.cpu import results_v1 as cpu
from benchmarks.demo_policy import results_v1 as demo_policy
from benchmarks.formats import results_v1 as formats
from benchmarks.study import Body
from benchmarks.watcher_cost import WatcherCostResult, WorkCost
from edge_vla.bench.provenance import Provenance
from edge_vla.bench.result import SpeedRatio

Json = Mapping[str, Any]

EVALUATION: Final = "demo policy, plain torch"  # how the results of `evaluate` began, which had no kind


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
        return demo_policy.evaluation(raw)
    convert = CONVERTERS.get(raw.get("kind", ""))
    return None if convert is None else convert(raw)


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


def _watcher(raw: Json) -> WatcherCostResult:
    costs = {
        name: WorkCost(
            slowdown=SpeedRatio(**slowdown),
            alone_p50_ms=raw["p50_ms"][name]["alone"],
            watched_p50_ms=raw["p50_ms"][name]["watched"],
        )
        for name, slowdown in raw["slowdown"].items()
    }
    return WatcherCostResult(
        rounds=raw["rounds"],
        queries=raw["queries"],
        ballast_bytes=raw["resident_bytes"],
        period_ms=raw["period_ms"],
        watcher_cpu_share=raw["watcher_cpu_share"],
        costs=costs,
    )


CONVERTERS: Final[Mapping[str, Callable[[Json], Body]]] = {
    "commands": _commands,
    "demo formats": demo_policy.adapter_formats,
    "demo ladder": demo_policy.ladder,
    "demo reproduction": demo_policy.reproduction,
    "drafts": cpu.drafts,
    "engine": cpu.engine,
    "interop": formats.interop,
    "mixed bits": formats.formats,
    "rounding methods": formats.formats,
    "steady": cpu.soak,
    "watcher": _watcher,
}
