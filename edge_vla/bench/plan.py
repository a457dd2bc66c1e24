"""What a bench is told: the reference and its frames, and what else is measured, declared before the run."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge_vla.bench.closed_loop import Trial
from edge_vla.bench.gates import FLOOR
from edge_vla.bench.latency import PROFILES
from edge_vla.bench.peers import PEERS
from edge_vla.bench.systems import Contestant
from edge_vla.checkpoint import Arithmetic, Checkpoint, open_checkpoint
from edge_vla.data import Frame, synthetic_image, write_frames
from edge_vla.errors import UsageError
from edge_vla.openvla import PolicyConfig

SYNTHETIC: Final = 64
INSTRUCTIONS: Final = ("pick up the object", "open the drawer", "put the spoon on the towel", "close the drawer")
FLOAT32: Final = "float32"
FLOORS: Final = (FLOOR, FLOAT32, "math attention", "batch of 8", "run again")


@dataclass(frozen=True)
class Reference:
    """The policy to be equal to, and the frames to be asked. Without `frames`, synthetic images are used."""

    source: str
    adapters: tuple[str, ...] = ()
    merge_arithmetic: Arithmetic = "fp32"
    frames: Path | None = None
    limit: int | None = None
    unnorm_key: str | None = None
    device: str = "auto"

    def checkpoint(self) -> Checkpoint:
        return open_checkpoint(self.source, [Path(adapter) for adapter in self.adapters], self.merge_arithmetic)

    def contestant(self, name: str = "reference", **changes: Any) -> Contestant:
        return Contestant(
            name,
            self.source,
            self.adapters,
            self.merge_arithmetic,
            device=self.device,
            unnorm_key=self.unnorm_key,
            **changes,
        )


@dataclass(frozen=True)
class Plan:
    """What else is measured, declared before the run."""

    floors: tuple[str, ...] = (FLOOR,)
    profile: str = "quick"
    paces_hz: tuple[float, ...] = ()
    trial: Trial | None = None
    peers: tuple[tuple[str, str | None], ...] = ()  # name, and the interpreter of its own environment
    peer_frames: Path | None = None  # what peers calibrate on; without, synthetic images
    vision: str = "auto"
    kernel: str = "auto"
    title: str | None = None
    model: str | None = None
    agreement: bool = True
    time_reference: bool = True
    waterfall: bool = False

    def __post_init__(self) -> None:
        if self.profile not in (*PROFILES, "none"):
            raise UsageError(f"--profile {self.profile}: choose one of {list(PROFILES)}, or none")
        if self.trial is not None and self.trial.live and (self.profile == "none" or not self.time_reference):
            raise UsageError("--live takes the latencies of this run, the reference's too: it needs a --profile, timed")
        for hz in self.paces_hz:
            if not (math.isfinite(hz) and hz > 0):
                raise UsageError(f"--pace {hz:g}: actions a second, more than none")
        for peer, python in self.peers:
            if peer not in PEERS:
                raise UsageError(f"--peer {peer}: choose among {list(PEERS)}")
            if python is not None and shutil.which(python) is None:
                raise UsageError(f"--peer {peer}={python}: no such program; give the interpreter of its environment")
        for name in self.floors:
            if name not in FLOORS:
                raise UsageError(f"--floor {name}: choose among {list(FLOORS)}")


def synthetic_frames(directory: Path, config: PolicyConfig, limit: int | None, key: str | None) -> Path:
    """Smooth noise with four instructions: no camera sees it, every policy answers it."""
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
