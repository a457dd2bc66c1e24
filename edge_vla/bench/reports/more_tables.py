"""Further tables: closed loop, peers, limits, layers, and how it was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from edge_vla.bench.reports import text
from edge_vla.bench.reports.systems import Result, sides
from edge_vla.bench.reports.tables import Table, table

TOTAL: Final = "total"  # the whole action, as a policy times it
WHOLE: Final = "whole action"  # and as its limits name it


def closed_loop(result: Result) -> Table | None:
    """One row a candidate, regime and kind of task, the candidate beside the reference."""
    rows = []
    for side in sides(result):
        for regime, entry in ((side.closed_loop or {}).get("regimes") or {}).items():
            for kind, candidate in entry["candidate"].items():
                reference = entry["reference"].get(kind)
                steps = candidate.get("steps_mean")
                rows.append(
                    [
                        f"{side.name}, {regime}, {kind}",
                        text.of(candidate["success"], candidate["episodes"]),
                        f"{text.share(candidate['low'])} to {text.share(candidate['high'])}",
                        text.of(reference["success"], reference["episodes"]) if reference else text.ABSENT,
                        f"{text.share(reference['low'])} to {text.share(reference['high'])}"
                        if reference
                        else text.ABSENT,
                        text.value_of(candidate.get("wrong_object")),
                        text.number(steps),
                    ]
                )
    return table(
        "Closed-loop success, Wilson 95 %",
        ["side, regime, task", "success", "interval", "reference", "its interval", "wrong object", "mean steps"],
        rows,
    )


def non_inferiority(result: Result) -> Table | None:
    rows, marks = [], []
    for side in sides(result):
        loop = side.closed_loop or {}
        for regime, entry in (loop.get("regimes") or {}).items():
            pairs = entry["pairs"]
            rows.append(
                [
                    f"{side.name}, {regime}",
                    text.points(entry["difference"]),
                    f"−{100 * loop['margin']:g} pp",
                    verdict(entry),
                    f"{pairs['both']} / {pairs['only_reference']} / {pairs['only_candidate']} / {pairs['neither']}",
                    text.number(entry.get("mcnemar_p"), 2),
                    text.share(entry.get("discordance")),
                    text.value_of(entry.get("episodes_needed")),
                ]
            )
            marks.append("" if entry["non_inferior"] is None else "pass" if entry["non_inferior"] else "fail")
    return table(
        "Candidate − reference, paired by episode, 90 % intervals",
        [
            "side, regime",
            "difference",
            "margin",
            "verdict",
            "both / only reference / only candidate / neither",
            "McNemar p",
            "discordant",
            "episodes for power 0.8",
        ],
        rows,
        marks,
        prose=[3],
    )


def verdict(entry: Result) -> str:
    return {True: "non-inferior", False: "not shown", None: "not judged"}[entry["non_inferior"]]


def peers(result: Result) -> Table | None:
    """Those that ran with their ratios, those that did not with the reason in their own text."""
    rows, marks = [], []
    measured = result.get("reference_measured") or {}
    if measured.get("ratio_to"):
        latency: Result = next(iter((measured.get("latency") or {}).values()), {})
        cells = [
            text.milliseconds(latency.get("p50_ms")),
            text.size((measured.get("memory") or {}).get("peak_bytes")),
        ]
        rows.append(["reference", "this package's own, not quantised", *cells, text.ABSENT, _ratios(measured), ""])
        marks.append("")
    for peer in result["peers"]:
        latency = peer.get("latency") or {}
        rows.append(
            [
                peer["name"],
                peer["what"],
                text.milliseconds(latency.get("p50_ms")),
                text.size((peer.get("memory") or {}).get("peak_bytes")),
                text.interval((peer.get("agreement") or {}).get("exact_action")),
                _ratios(peer),
                "" if peer["ran"] else f"did not run: “{peer['why_not'] or 'no reason given'}”",
            ]
        )
        marks.append("" if peer["ran"] else "open")
    columns = ["peer", "what", "p50", "peak memory", "same action", "its p50 ÷ ours, interleaved", "reason"]
    return table("Peers", columns, rows, marks, prose=[1, 5, 6])


def against_peers(result: Result) -> Table | None:
    """Each candidate minus each peer on the same frames, with the interval by episode."""
    rows = [
        [
            candidate["name"],
            peer,
            text.points(found["teacher_forced_difference"]),
            text.points(found["exact_action_difference"]),
            text.plain_interval(found["kl_difference"]),
        ]
        for candidate in result["candidates"]
        for peer, found in (candidate.get("against_peers") or {}).items()
    ]
    columns = ["candidate", "minus peer", "teacher-forced tokens", "same action", "KL from the reference, nats"]
    return table("Beside peers, frame by frame: more tokens and less KL are nearer to the reference", columns, rows)


def _ratios(row: Result) -> str:
    """Without an interval a ratio is only that; with one that holds 1 there is no difference."""
    told = []
    for name, ratio in (row.get("ratio_to") or {}).items():
        low, high = ratio["low"], ratio["high"]
        spread = "" if low is None else f" [{low:.2f}, {high:.2f}]" + (" no difference" if low <= 1 <= high else "")
        told.append(f"{name}: {ratio['ratio']:.2f}{spread}")
    return "; ".join(told) or text.ABSENT


def limits(result: Result) -> Table | None:
    rows = [
        [
            stage["name"],
            text.size(stage.get("bytes")),
            text.ABSENT if stage.get("operations") is None else f"{text.number(stage['operations'] / 1e9)} G",
            text.milliseconds(stage.get("bytes_ms")),
            text.milliseconds(stage.get("operations_ms")),
            text.milliseconds(stage["limit_ms"]),
            text.milliseconds(stage["measured_ms"]),
            text.share(stage.get("share")),
        ]
        for stage in (result["limits"] or {}).get("stages", ())
    ]
    columns = ["stage", "bytes", "operations", "bytes alone", "arithmetic alone", "limit", "measured", "share of limit"]
    whose = (result["limits"] or {}).get("model", "")
    return table(f"What this machine allows: {whose}", columns, rows)


def waterfalls(result: Result) -> Iterator[Table | None]:
    """Of each candidate that was looked into: its stages in order, each beside its limit."""
    for candidate in result["candidates"]:
        if candidate.get("waterfall"):
            yield waterfall(candidate)


def waterfall(candidate: Result) -> Table | None:
    measured = candidate["waterfall"]["measured_ms"]
    limits = {stage["name"]: stage for stage in candidate["waterfall"]["limits"]["stages"]}
    rows = []
    for name, milliseconds in measured.items():
        limit = limits.get(WHOLE if name == TOTAL else name, {})
        operations = limit.get("operations")
        rows.append(
            [
                name,
                text.milliseconds(milliseconds),
                text.share(milliseconds / measured[TOTAL]),
                text.size(limit.get("bytes")),
                text.ABSENT if operations is None else f"{text.number(operations / 1e9)} G",
                text.milliseconds(limit.get("limit_ms")),
                text.share(limit.get("share")),
            ]
        )
    columns = ["stage", "median", "of the action", "bytes", "operations", "limit", "share of limit"]
    return table(f"One action of {candidate['name']}, stage by stage", columns, rows)


def operators(result: Result) -> Table | None:
    """The costliest of one action, of each candidate that was looked into."""
    rows = [
        [candidate["name"], operator["name"], text.milliseconds(operator["ms"]), text.number(operator["calls"])]
        for candidate in result["candidates"]
        for operator in (candidate.get("waterfall") or {}).get("operators", ())
    ]
    return table(
        "Costliest operators of one action, while watched", ["side", "operator", "time", "calls"], rows, prose=[1]
    )


def ceilings(result: Result) -> str:
    """One sentence: what was measured as the machine's limits, and how."""
    found = (result["limits"] or {}).get("ceilings") or {}
    parts = []
    if found.get("copy_bytes_per_s") is not None:
        parts.append(f"memory {text.number(found['copy_bytes_per_s'] / 1e9)} GB/s")
    for dtype, value in (found.get("gemm_flops") or {}).items():
        if value is not None:
            parts.append(f"{dtype} matrix products {text.number(value / 1e9)} GFLOP/s")
    how = f" ({found['how']})" if found.get("how") else ""
    return f"Measured ceilings: {', '.join(parts)}{how}." if parts else ""


def layers(result: Result) -> Table | None:
    """Relative error of each quantised matrix: one row a layer and side, one column a module."""
    found = [side for side in sides(result) if side.layer_errors]
    modules = list(dict.fromkeys(name for side in found for layer in side.layer_errors.values() for name in layer))
    rows = [
        [f"{side.name}, layer {layer}", *(text.number(errors.get(module)) for module in modules)]
        for side in found
        for layer, errors in side.layer_errors.items()
    ]
    return table("Relative error of each quantised matrix", ["side, layer", *modules], rows)


def worst(result: Result) -> Table | None:
    rows = [
        [
            f"{candidate['name']}, frame {frame['frame']}",
            frame.get("instruction", text.ABSENT),
            text.value_of(frame.get("episode")),
            text.value_of(frame.get("step")),
            " ".join(text.number(value) for value in frame["bins_apart"]),
        ]
        for candidate in result["candidates"]
        for frame in candidate["worst_frames"]
    ]
    columns = ["side, frame", "instruction", "episode", "step", "bins apart by dimension"]
    return table("Frames where the actions are furthest apart", columns, rows, prose=[1])


def conditions(result: Result) -> Table:
    """Everything that is needed to measure it again."""
    environment, frames, reference = result["environment"], result["frames"], result["reference"]
    phases = ", ".join(f"{name} {n}" for name, n in frames["by_phase"].items())
    rows = [
        ["model", result["model"]["name"]],
        ["reference", " + ".join([reference["name"], *reference["adapters"]]) + f", {reference['dtype']}"],
        ["reference's identity", reference["identity"]],
        [
            "frames",
            f"{frames['name']}, {frames['source']}: {text.count(frames['count'], 'frame')} of "
            f"{text.count(frames['episodes'], 'episode')}" + (f" ({phases})" if phases else ""),
        ],
        ["frames' sha256", frames["sha256"]],
    ]
    for candidate in result["candidates"]:
        artifact = candidate["artifact"]
        rows.append([f"{candidate['name']}: artifact", f"{artifact['name']}, {artifact['identity']}"])
        rows.append([f"{candidate['name']}: recipe", text.recipe(artifact["recipe"]) or text.ABSENT])
    rows += [
        [f"{side.name}: kernels", ", ".join(f"{part} {kernel}" for part, kernel in side.kernels.items())]
        for side in sides(result)
        if side.kernels
    ]
    rows += [
        [name.replace("_", " "), text.value_of(value)]
        for name, value in environment.items()
        if name not in ("publishable", "unpublishable_because")
    ]
    rows += [[f"declared: {name.replace('_', ' ')}", text.value_of(v)] for name, v in result["gates_declared"].items()]
    return Table("How it was measured", ["", ""], rows, prose=frozenset({1}))
