"""Results of the demo policy's studies. Rates and accuracies are shares in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class DimensionAccuracy:
    """Free-running tokens of one action dimension against the expert's."""

    exact: float
    within_4_bins: float
    mean_error: float  # of the normalised range [-1, 1]


@dataclass(frozen=True)
class FrameAccuracy:
    """Free-running predictions on frames that were never trained on."""

    dimensions: dict[str, DimensionAccuracy]
    moving_frames: int  # where the expert moves along x
    dx_sign: float  # of those, share with the right direction
    named_target: float  # share nearer to the named block's action than to another block's
    gripper_decision: float  # share that open or close as the expert does

    def log_row(self) -> dict[str, float]:
        """The same as a flat row of a training log, under the names that committed logs have."""
        row = dict[str, float]()
        for name, one in self.dimensions.items():
            row |= {f"exact {name}": one.exact, f"close {name}": one.within_4_bins, f"error {name}": one.mean_error}
        row |= {"moving": float(self.moving_frames), "dx sign": self.dx_sign}
        return {**row, "named target": self.named_target, "grip decided": self.gripper_decision}


@dataclass(frozen=True)
class ClosedLoopRates:
    """Outcomes of so many episodes, with Wilson's 95 % intervals."""

    episodes: int
    success: float
    success_interval: tuple[float, float]
    wrong_object: float
    wrong_object_interval: tuple[float, float]
    mean_steps: float | None  # of successes


@dataclass(frozen=True)
class PolicyEvaluation:
    """A demo policy in plain torch, bf16, greedy: closed loop by condition, and accuracy on single frames."""

    KIND: ClassVar = "policy evaluation"
    VERSION: ClassVar = 1

    closed_loop: dict[str, ClosedLoopRates]
    frames: dict[str, FrameAccuracy]


@dataclass(frozen=True)
class Memorised:
    """Free-running predictions on the frames that a stage repeats."""

    frames: int
    prompts: int
    tokens: float
    within_one_bin: float | None
    whole_actions: float
    exact_by_dimension: dict[str, float]
    dx_sign: float


@dataclass(frozen=True)
class Rung:
    """A trained run of one small problem; `stage` is its configuration."""

    stage: dict[str, Any]
    steps: int
    pictures: int
    memorised: Memorised | None
    fresh: FrameAccuracy | None
    fresh_frames: int | None
    dx_sign_interval: tuple[float, float] | None


@dataclass(frozen=True)
class LadderResult:
    """The small problems that precede the whole one."""

    KIND: ClassVar = "ladder"
    VERSION: ClassVar = 1

    rungs: dict[str, Rung]


@dataclass(frozen=True)
class StageCost:
    pictures: int
    seconds: float


@dataclass(frozen=True)
class ConditionComparison:
    """Success in one condition: the shipped policy's, and that of one trained again. Wilson's 95 % intervals."""

    shipped: float
    shipped_interval: tuple[float, float]
    reproduced: float
    reproduced_interval: tuple[float, float]
    reproduced_wrong_object: float
    tolerance: float

    @property
    def difference(self) -> float:
        return round(self.reproduced - self.shipped, 4)

    @property
    def within_tolerance(self) -> bool:
        return abs(self.difference) <= self.tolerance


@dataclass(frozen=True)
class ReproductionResult:
    """The demo policy trained again from nothing, beside the shipped one."""

    KIND: ClassVar = "reproduction"
    VERSION: ClassVar = 1

    stages: dict[str, StageCost]
    conditions: dict[str, ConditionComparison]
