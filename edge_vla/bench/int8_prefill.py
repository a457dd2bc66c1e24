"""What a bench says of rows of 8 bits in a prefill, for `auto` to go by: its verdict, left beside the artifact."""

from __future__ import annotations

from typing import Final

from edge_vla.artifact import Artifact
from edge_vla.artifact.int8_prefill import Int8Prefill
from edge_vla.bench.result import ROUNDING_NOISE, Candidate, Result
from edge_vla.runtime.kernels import NATIVE_INT8

AGREEMENT: Final = ("teacher-forced tokens", "free-running tokens", "gripper flips", "high-margin flips")  # gates


def verdict(result: Result, row: Candidate, artifact: Artifact) -> Int8Prefill | None:
    """Of a candidate that ran so, against the floor of rounding noise. None if it did not, or without such a floor."""
    agreement, floor = row.agreement, result.floors.get(ROUNDING_NOISE)
    ran = any(NATIVE_INT8 in kernel for kernel in row.performance.kernels.values())
    if agreement is None or floor is None or not ran:
        return None
    gates = {gate.name: gate.passed for gate in result.gates if gate.system == row.name and gate.name in AGREEMENT}
    tokens = agreement.teacher_forced
    return Int8Prefill(
        artifact=artifact.identity,
        passed=set(gates) == set(AGREEMENT) and all(gates.values()),
        frames=agreement.frames,
        tokens=tokens.mean,
        tokens_low=tokens.low,
        tokens_high=tokens.high,
        noise_floor=floor.teacher_forced.mean,
        gates=gates,
    )
