"""The waterfall of one action: where its milliseconds go, what each stage reads and computes, and how near its limit.

    python -m edge_vla.bench.stage_profile ARTIFACT --out RESULT.json

`profile` measures a loaded policy and `waterfall` writes the result as text. Operators are timed in a run of their own,
because watching them costs time. Knows stages and operators; limits come from `edge_vla.device.limits`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch.profiler import ProfilerActivity

from edge_vla.bench.provenance import environment
from edge_vla.data import open_image, synthetic_image
from edge_vla.device import limits
from edge_vla.errors import EdgeVLAError
from edge_vla.files import write_whole
from edge_vla.runtime import Policy, load

WARM_UP: Final = 5
WATCHED: Final = 10  # actions whose operators are counted
OPERATORS: Final = 12
BAR: Final = 40


def profile(
    policy: Policy, image: Image.Image, instruction: str, unnorm_key: str | None = None, actions: int = 50,
    ceilings: limits.Ceilings | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Median milliseconds by stage, each beside its limit; the costliest operators, with calls an action."""
    config, spec = policy.config, policy.config.spec
    for _ in range(WARM_UP):
        policy.act(image, instruction, unnorm_key)
    timings = [policy.act(image, instruction, unnorm_key).timing_ms for _ in range(actions)]
    measured = {stage: statistics.median(timing[stage] for timing in timings) for stage in timings[0]}
    prompt = policy.prompter(instruction)
    dims = config.statistics[config.statistics.resolve(unnorm_key)].dims
    passes = limits.costs(spec, policy.network.weight_bytes["decoder"], len(prompt), dims)
    ceilings = ceilings or limits.measure(spec, policy.network.device, len(prompt))
    return {
        "actions": actions,
        "prompt tokens": len(prompt),
        "kernels": dict(policy.network.kernels),
        "measured_ms": {stage: round(value, 4) for stage, value in measured.items()},
        "limits": limits.limits("given", passes, ceilings, measured),
        "operators": _operators(policy, image, instruction, unnorm_key),
    }


def waterfall(result: dict[str, Any]) -> str:
    """One line a stage: when it begins and how long it takes, bytes, operations, share of its limit."""
    measured: dict[str, float] = result["measured_ms"]
    rows = {row["name"]: row for row in result["limits"]["stages"]}
    total, begun, lines = measured["total"], 0.0, list[str]()
    for stage, milliseconds in measured.items():
        if stage == "total":
            continue
        before, length = (round(BAR * value / total) for value in (begun, milliseconds))
        line = f"{stage:<11}{milliseconds:9.2f} ms  {' ' * before}{'#' * max(1, length)}".ljust(BAR + 26)
        row = rows.get(stage)
        if row:
            line += f"{row['bytes'] / 1e6:10.1f} MB {row['operations'] / 1e9:9.2f} Gop {row['share']:6.1%} of its limit"
        lines.append(line.rstrip())
        begun += milliseconds
    lines.append(f"{'total':<11}{total:9.2f} ms")
    lines += [
        f"  {operator['name']:<44}{operator['ms']:9.3f} ms {operator['calls']:7.1f} calls"
        for operator in result["operators"]
    ]
    return "\n".join(lines)


def _operators(policy: Policy, image: Image.Image, instruction: str, unnorm_key: str | None) -> list[dict[str, Any]]:
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as watched:
        for _ in range(WATCHED):
            policy.act(image, instruction, unnorm_key)
    events = sorted(watched.key_averages(), key=lambda event: -event.self_cpu_time_total)
    return [
        {
            "name": event.key,
            "ms": round(event.self_cpu_time_total / WATCHED / 1e3, 4),
            "calls": round(event.count / WATCHED, 1),
        }
        for event in events[:OPERATORS]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m edge_vla.bench.stage_profile", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--image", type=Path)
    parser.add_argument("--instruction", default="pick up the red block")
    parser.add_argument("--unnorm-key")
    parser.add_argument("--actions", type=int, default=50)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    policy = load(given.model)
    size = policy.config.spec.image_size
    image = open_image(given.image) if given.image else synthetic_image(0, size)
    result = profile(policy, image, given.instruction, given.unnorm_key, given.actions)
    text = waterfall(result).splitlines()
    document = {"version": 1, "kind": "profile", "environment": environment(), **result, "waterfall": text}
    write_whole(given.out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"error: {error}")
