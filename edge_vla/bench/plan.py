"""What a bench measures, declared before the run: the reference and its frames, floors, timing, episodes, peers."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_vla.bench.latency import PROFILES
from edge_vla.bench.messages import System
from edge_vla.bench.peers import PEERS
from edge_vla.bench.result import ROUNDING_NOISE
from edge_vla.checkpoint import Arithmetic, Checkpoint, open_checkpoint
from edge_vla.data import Frame, synthetic_image, write_frames
from edge_vla.errors import UsageError
from edge_vla.openvla import PolicyConfig
from edge_vla.openvla.evaluation import Preprocess, chosen
from edge_vla.suggestions import choose

SYNTHETIC: Final = 64
INSTRUCTIONS: Final = ("pick up the object", "open the drawer", "put the spoon on the towel", "close the drawer")
FLOAT32: Final = "float32"
REPEAT: Final = "run again"
FLOORS: Final = (ROUNDING_NOISE, FLOAT32, "math attention", "batch of 8", REPEAT)
NO_PROFILE: Final = "none"


@dataclass(frozen=True)
class ReferencePlan:
    """The policy to be equal to, and the frames to compare on. Without `frames`, synthetic images are used."""

    source: str
    adapters: tuple[str, ...] = ()
    merge_arithmetic: Arithmetic = "fp32"
    frames: Path | None = None
    limit: int | None = None
    unnorm_key: str | None = None
    device: str = "auto"
    prompt: str | None = None  # in place of what the source says, as are the statistics
    statistics: str | None = None
    preprocess: Preprocess = "none"  # of every system's images

    def __post_init__(self) -> None:
        chosen(self.preprocess)

    def checkpoint(self) -> Checkpoint:
        adapters = [Path(adapter) for adapter in self.adapters]
        return open_checkpoint(
            self.source, adapters, self.merge_arithmetic, prompt=self.prompt, statistics=self.statistics
        )

    def system(self, name: str = "reference") -> System:
        """The reference as a system to measure."""
        return System(
            name,
            self.source,
            self.adapters,
            self.merge_arithmetic,
            device=self.device,
            unnorm_key=self.unnorm_key,
            prompt=self.prompt,
            statistics=self.statistics,
            preprocess=self.preprocess,
        )


@dataclass(frozen=True)
class ClosedLoopPlan:
    """Paired episodes in an environment, by `package.module:attribute`."""

    environment: str
    episodes: int  # of each kind of task
    margin: float = 0.03  # a loss of success below it is accepted
    live: bool = False  # also at control rate, with the latencies that this run measures

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise UsageError(f"--episodes {self.episodes}: expected at least 1")
        if not 0 < self.margin < 1:
            raise UsageError(f"--margin {self.margin:g}: expected a share between 0 and 1")


@dataclass(frozen=True)
class Plan:
    """Everything else to measure. `peers` are names, each with the interpreter of its own environment."""

    floors: tuple[str, ...] = (ROUNDING_NOISE,)
    profile: str = "quick"
    paces_hz: tuple[float, ...] = ()
    closed_loop: ClosedLoopPlan | None = None
    peers: tuple[tuple[str, str | None], ...] = ()
    peer_frames: Path | None = None  # what peers calibrate on; None: synthetic images
    vision: str = "auto"
    kernel: str = "auto"
    title: str | None = None
    model: str | None = None
    agreement: bool = True
    time_reference: bool = True
    stage_profile: bool = False

    def __post_init__(self) -> None:
        if self.profile not in (*PROFILES, NO_PROFILE):
            raise UsageError(f"--profile {self.profile}: {choose(self.profile, [*PROFILES, NO_PROFILE])}")
        timed = self.profile != NO_PROFILE and self.time_reference
        if self.closed_loop is not None and self.closed_loop.live and not timed:
            raise UsageError("--live needs the latencies of this run: add --profile quick and time the reference too")
        for hz in self.paces_hz:
            if not (math.isfinite(hz) and hz > 0):
                raise UsageError(f"--pace {hz:g}: expected actions a second, above 0")
        for peer, python in self.peers:
            if peer not in PEERS:
                raise UsageError(f"--peer {peer}: {choose(peer, PEERS)}")
            if python is not None and shutil.which(python) is None:
                raise UsageError(f"--peer {peer}={python}: no such program; give the Python of its own environment")
        for name in self.floors:
            if name not in FLOORS:
                raise UsageError(f"--floor {name}: {choose(name, FLOORS)}")


def synthetic_frames(directory: Path, config: PolicyConfig, limit: int | None, key: str | None) -> Path:
    """Write frames of smooth noise with four instructions: unlike any camera's, but every policy can act on them."""
    size = config.spec.image_size
    key = key or next(iter(config.statistics))
    write_frames(
        directory,
        (
            (Frame(Path(f"{i:03d}.png"), INSTRUCTIONS[i % len(INSTRUCTIONS)], key), synthetic_image(i, size))
            for i in range(limit or SYNTHETIC)
        ),
    )
    return directory
