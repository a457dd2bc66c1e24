"""Results of the format studies. Shares are in [0, 1], divergences in nats, intervals 95 % over episodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from edge_vla.bench.result import Interval

FLOOR = "bf16, rounding noise"  # the noise floor: bf16 with every layer's rounding perturbed by one step


@dataclass(frozen=True)
class Share:
    """A share with its interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A format against another one, on the same frames."""

    name: str
    kl_reduction: Share  # part of the other's mean KL that is gone
    same_token_difference: Interval


@dataclass(frozen=True)
class BitsSpent:
    """Where a mixed export's budget went: its own prediction, and the format of every linear."""

    bits_per_weight: float
    predicted_kl: float
    predicted_kl_mixed: float  # of the best mixed plan
    predicted_kl_uniform: float | None  # of the best plan with one format for all linears
    residual_kept: float
    vision_bits: int | None
    formats: dict[str, str]  # by layer and linear


@dataclass(frozen=True)
class FormatRow:
    """One format, teacher-forced, against bf16 on the same frames. None in the floor's row where no artifact is."""

    name: str
    recipe: dict[str, Any] | None
    bits_per_weight: float | None
    stored_bytes: int | None
    calibration_leakage: int | None  # frames here that it was calibrated on
    kernels: dict[str, str]
    same_token: Interval
    within_one_bin: float
    kl: Interval
    kl_percentiles: dict[str, float]  # over frames
    high_margin_tokens: int
    high_margin_flips: int
    against: Comparison | None
    spent: BitsSpent | None


@dataclass(frozen=True)
class FormatsResult:
    """What formats keep of one policy; the first row is the noise floor."""

    KIND: ClassVar = "formats"
    VERSION: ClassVar = 1

    question: str
    model: str
    frames: int
    episodes: int
    margin_floor: float | None  # logits; larger margins are high
    rows: list[FormatRow]


@dataclass(frozen=True)
class InteropCase:
    """A checkpoint of ours, loaded by another program. Differences are the largest over all rows and the vocabulary."""

    format: str
    bits: int
    loader: str
    linear_class: str  # of the other program
    versions: dict[str, str]
    rows: int
    largest_logit: float
    difference: float  # theirs in bfloat16 to ours in float32
    rounding: float  # ours in bfloat16 to ours in float32
    same_token: float  # share of rows where theirs and our float32 choose the same token


@dataclass(frozen=True)
class InteropResult:
    """Do other programs compute what we do from the checkpoints that we write?"""

    KIND: ClassVar = "interop"
    VERSION: ClassVar = 2

    source: str
    cases: list[InteropCase]
