"""Where the milliseconds of one action go, stage by stage, and how near each stage is to its limit.

Limits come from `edge_vla.device.limits`.
"""

from __future__ import annotations

import statistics
from typing import Final

from PIL import Image

from edge_vla.bench.result import StageProfile
from edge_vla.device import limits
from edge_vla.runtime import Policy

WARM_UP: Final = 5


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
    )
