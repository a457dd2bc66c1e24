"""Where the milliseconds of one action go, stage by stage, and how near each stage is to its limit.

Operators are timed in runs of their own, because the profiler costs time. Limits come from `edge_vla.device.limits`.
"""

from __future__ import annotations

import statistics
from typing import Final

import torch
from PIL import Image
from torch.profiler import ProfilerActivity

from edge_vla.bench.result import Operator, StageProfile
from edge_vla.device import limits
from edge_vla.runtime import Policy

WARM_UP: Final = 5
PROFILED: Final = 10  # actions whose operators are counted
OPERATORS: Final = 12


def stage_profile(
    policy: Policy,
    image: Image.Image,
    instruction: str,
    unnorm_key: str | None = None,
    actions: int = 50,
    ceilings: limits.Ceilings | None = None,
) -> StageProfile:
    """Median milliseconds by stage over `actions`. `ceilings` are measured here unless given."""
    config, spec = policy.config, policy.config.spec
    for _ in range(WARM_UP):
        policy.act(image, instruction, unnorm_key)
    timings = [policy.act(image, instruction, unnorm_key).timing_ms for _ in range(actions)]
    measured = {stage: statistics.median(timing[stage] for timing in timings) for stage in timings[0]}
    prompt = policy.prompter(instruction)
    dims = config.statistics[config.statistics.resolve(unnorm_key)].dims
    passes = limits.costs(spec, policy.network.weight_bytes["decoder"], len(prompt), dims)
    ceilings = ceilings or limits.measure(spec, policy.network.device, len(prompt))
    return StageProfile(
        actions=actions,
        prompt_tokens=len(prompt),
        kernels=dict(policy.network.kernels),
        measured_ms={stage: round(value, 4) for stage, value in measured.items()},
        limits=limits.limits("given", passes, ceilings, measured),
        operators=_operators(policy, image, instruction, unnorm_key),
    )


def _operators(policy: Policy, image: Image.Image, instruction: str, unnorm_key: str | None) -> list[Operator]:
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(PROFILED):
            policy.act(image, instruction, unnorm_key)
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    return [
        Operator(
            name=event.key,
            ms=round(event.self_cpu_time_total / PROFILED / 1e3, 4),
            calls=round(event.count / PROFILED, 1),
        )
        for event in events[:OPERATORS]
    ]
