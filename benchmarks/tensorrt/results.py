"""What the studies of vision on TensorRT write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from benchmarks.study import Target
from edge_vla.bench.result import Interval


@dataclass(frozen=True)
class EngineBuild:
    """One engine, built in a process of its own. `fused_attentions` is counted in the plan's own text."""

    policy: str
    precision: str
    target: str
    seconds: float  # parsing and building
    cpu_seconds: float  # of all threads; less than `seconds` where the machine was busy
    peak_bytes: int  # resident, of the process
    plan_bytes: int
    attentions: int  # in the graph
    fused_attentions: int
    int8_linears: int


@dataclass(frozen=True)
class EngineBuildsResult:
    """Strongly typed engines by TensorRT-RTX, built without a GPU; none of them was run."""

    KIND: ClassVar = "tensorrt-builds"
    VERSION: ClassVar = 1

    library: str
    builds: list[EngineBuild]
    targets: list[Target]


@dataclass(frozen=True)
class VisionTokens:
    """The demo policy's decoder behind one vision, against the same decoder behind float32 vision, frame by frame."""

    vision: str
    decoder: str  # its arithmetic
    embeddings_error: float  # of the norm, over all frames
    tokens: Interval  # share equal, free-running
    actions: Interval  # share with all tokens equal


@dataclass(frozen=True)
class Int8VisionResult:
    """`linears`: how many compute in int8, how many have int8 weights alone, how many keep 16 bits."""

    KIND: ClassVar = "int8-vision"
    VERSION: ClassVar = 2

    frames: int
    episodes: int
    calibration_frames: int
    linears: tuple[int, int, int]
    kept: list[str]
    visions: list[VisionTokens]
    targets: list[Target]
