"""Results of the loop's own measurements as Markdown: engine, drafts, steady state. Each figure comes from one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

Result = Mapping[str, Any]
STAGES: Final = ("prefill", "step", "verify")
SIDES: Final = {"packed": "", "eager": "eager ", "llama.cpp": "llama.cpp "}  # and how its stages begin


def claims(result: Result) -> Iterator[str]:
    """What was to be reached, and what was."""
    yield f"| {_subject(result)} | reached | to be reached | |"
    yield "|---|---:|---:|---|"
    for claim in result.get("claims", ()):
        bar = f"at least {claim['at least']:g}" if "at least" in claim else f"at most {claim['at most']:g}"
        yield f"| {claim['what']} | {claim['value']:.4g} | {bar} | {'yes' if claim['holds'] else 'no'} |"
    actions = result.get("whole action, ms", {})
    for side, name in (("packed", "whole action"), ("eager", "whole action, eager")):
        if side in actions:
            yield f"| {name}, seconds | {actions[side] / 1e3:.2f} | | |"


def _subject(result: Result) -> str:
    if result["kind"] == "engine":
        kernels = ", ".join(result["kernels"].values())
        how = "in turns" if "eager" in result["decoder part of an action, ms"] else "alone"
        threads = result["environment"]["threads"]
        return f"`{result['model']}`, {result['bits']} bits, {kernels}, {threads} threads, {how}"
    return f"demo policy, {', '.join(f'{part}: {kernel}' for part, kernel in result['kernels'].items())}"


def engine(result: Result) -> Iterator[str]:
    yield from claims(result)
    yield ""
    yield "| milliseconds, median | prefill | one step | six rows at once | decoder part | whole action |"
    yield "|---|---:|---:|---:|---:|---:|"
    taken, parts = result["milliseconds, median"], result["decoder part of an action, ms"]
    actions = result.get("whole action, ms", {})
    for side, prefix in SIDES.items():
        if side in parts:
            cells = [taken.get(prefix + stage) for stage in STAGES] + [parts[side], actions.get(side)]
            yield f"| {side} | " + " | ".join("" if cell is None else f"{cell:.1f}" for cell in cells) + " |"
    measured = result["layers measured"]
    yield ""
    yield (
        f"{result['prompt rows']} rows of prompt. Measured on {measured['packed']} of {measured['of']} packed layers "
        f"and {measured['eager']} eager ones, multiplied up."
    )


def drafts(result: Result) -> Iterator[str]:
    """Passes and differing tokens of each proposal in each mode, then where the first drafts were right."""
    yield "| drafts | mode | actions | passes an action | dimensions right | at most one bin off | tokens that differ |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for mode, rows in result["modes"].items():
        for name, row in rows.items():
            if row is None:
                continue
            right = row.get("acceptance", {}).get("all")
            cells = [
                _interval(row["passes per action"]),
                _share(right) if right else "",
                f"{row['at most one bin off']['all']:.1%}" if right else "",
                f"{row['tokens that differ']} in {row['actions that differ']} actions",
            ]
            yield f"| {name} | {mode} | {row['actions']} | {' | '.join(cells)} |"
    strict = {name: row for name, row in result["modes"]["strict"].items() if row and "acceptance" in row}
    parts = list(dict.fromkeys(part for row in strict.values() for part in row["acceptance"]))
    yield ""
    yield f"| first draft right | {' | '.join(parts)} |"
    yield "|---|" + "---:|" * len(parts)
    for name, row in strict.items():
        cells = [f"{row['acceptance'][part]['mean']:.1%}" if part in row["acceptance"] else "" for part in parts]
        yield f"| {name} | {' | '.join(cells)} |"
    if "times" in result:
        yield from ("", *_times(result["times"]))


def _times(times: Result) -> Iterator[str]:
    yield "| drafts | mode | decoder ms | decoder, times faster than plain | action, times faster |"
    yield "|---|---|---:|---:|---:|"
    for mode in ("strict", "fast"):
        for name, row in times[mode].items():
            decoder, action = (row[f"{part}, times faster than plain"] for part in ("decoder", "action"))
            yield f"| {name} | {mode} | {row['decoder ms, mean']:.2f} | {decoder:.2f} | {action:.2f} |"


def steady(result: Result) -> Iterator[str]:
    yield from claims(result)
    yield ""
    yield "| in turns on the same frames | times | p50 | p99 | p99/p50 | times faster than the reference |"
    yield "|---|---:|---:|---:|---:|---:|"
    for name, row in result["compared in turns"].items():
        ratio = result["times faster than the reference, by p50"].get(name)
        times = f"{row['p50_ms']:.2f} ms | {row['p99_ms']:.2f} ms | {row['p99/p50']:.2f}"
        yield f"| {name} | {row['actions']} | {times} | {'' if ratio is None else f'{ratio:.2f}'} |"
    alone = result["alone"]
    yield ""
    yield (
        f"Alone, {alone['actions']} actions: p50 {alone['p50_ms']:.2f} ms, p99 {alone['p99_ms']:.2f} ms; "
        f"{alone['tensors made per action']:.1f} tensors made in each, {alone['bytes kept per action']:.0f} bytes stay."
    )


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def _share(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.1%} [{value['low']:.1%}, {value['high']:.1%}]"
