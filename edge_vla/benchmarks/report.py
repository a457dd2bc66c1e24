"""A result as Markdown. Every figure comes from the result; none is written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def markdown(result: Mapping[str, Any]) -> str:
    """The report of one `bench` result."""
    artifact, environment = result["artifact"], result["environment"]
    lines = [
        f"# {artifact['name']} against {_reference(result['reference'])}",
        "",
        f"Artifact `{artifact['identity'][:12]}`, recipe {_recipe(artifact['recipe'])}, "
        f"{artifact['disk_bytes'] / 1e9:.3f} GB on disk. "
        f"{result['frames']['count']} {result['frames']['source']} frames.",
        "",
        "## Is it the same policy?",
        "",
        *_agreement(result["agreement"], result["noise_floor"]),
        "",
        "## How fast, how large?",
        "",
        *_speed(result["measured"]),
        "",
        "## Measured on",
        "",
        f"{environment['device']}, {environment['threads']} threads, torch {environment['torch']}, "
        f"commit {environment['commit']}, {environment['time']}",
        "",
        f"    {environment['command']}",
        "",
    ]
    return "\n".join(lines)


def _agreement(candidate: Mapping[str, Any], floor: Mapping[str, Any]) -> list[str]:
    """One row a measure: the candidate, and the reference against itself with its rounding shaken."""
    rows = [
        ("teacher-forced tokens", "teacher_forced"),
        ("free-running tokens", "free_running"),
        ("all tokens equal", "exact_tokens"),
        ("same action", "exact_action"),
    ]
    lines = ["| agreement with the reference | candidate | noise floor |", "|---|---|---|"]
    lines += [f"| {name} | {_interval(candidate[key])} | {_interval(floor[key])} |" for name, key in rows]
    apart = [side["bins_apart"] for side in (candidate, floor)]
    lines.append(f"| bins apart: mean, p99, largest | {_apart(apart[0])} | {_apart(apart[1])} |")
    lines.append(
        f"| flips where the reference led by more than {candidate['floor_margin']:.3g} | "
        f"{_flips(candidate)} | {_flips(floor)} |"
    )
    lines.append(f"| flips at nearer ties | {candidate['near_tie_flips']} | {floor['near_tie_flips']} |")
    lines.append(
        f"| would not have been an action token | {candidate['would_be_invalid']:.3%} | "
        f"{candidate['reference_would_be_invalid']:.3%} (reference) |"
    )
    dims = range(len(candidate["teacher_forced_by_dimension"]))
    lines += ["", "| dimension | " + " | ".join(str(d) for d in dims) + " |", "|---|" + "---|" * len(dims)]
    for name, key in [("teacher-forced", "teacher_forced_by_dimension"), ("free-running", "free_running_by_dimension")]:
        lines.append(f"| {name} | " + " | ".join(f"{value:.1%}" for value in candidate[key]) + " |")
    for side in ("candidate", "reference"):
        accuracy = candidate.get(f"{side}_against_recorded")
        if accuracy is not None:
            shares = (f"{value:.1%}" for value in accuracy["within_2_by_dimension"])
            lines.append(f"| {side} within 2 bins of the recorded action | " + " | ".join(shares) + " |")
    return lines


def _speed(measured: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["| | reference | candidate |", "|---|---|---|"]
    sides = [measured["reference"], measured["candidate"]]

    def row(name: str, cells: list[str]) -> None:
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")

    row("one action, p50", [f"{side['p50_ms']:.1f} ms" for side in sides])
    row(
        "one action, p90",
        [f"n/a (n={side['queries']})" if side["p90_ms"] is None else f"{side['p90_ms']:.1f} ms" for side in sides],
    )
    row("rate", [f"{side['hz']:.2f} Hz" for side in sides])
    for part in sides[0]["weight_bytes"]:
        row(f"weights: {part}", [f"{side['weight_bytes'][part] / 1e6:.2f} MB" for side in sides])
    row("peak memory of its process", [f"{side['peak_bytes'] / 1e9:.3f} GB" for side in sides])
    row("load", [f"{side['load_s']:.2f} s" for side in sides])
    row("kernels", [", ".join(f"{k}: {v}" for k, v in side["kernels"].items()) for side in sides])
    return lines


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.2%} [{value['low']:.2%}, {value['high']:.2%}]"


def _apart(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.3f}, {value['p99']:.0f}, {value['max']}"


def _flips(side: Mapping[str, Any]) -> str:
    return f"{side['high_margin_flips']} of {side['high_margin_tokens']}"


def _reference(reference: Mapping[str, Any]) -> str:
    return " + ".join([reference["name"], *reference["adapters"]]) + " in bf16"


def _recipe(recipe: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in recipe.items() if value is not None)
