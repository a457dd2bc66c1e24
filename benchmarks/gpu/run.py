"""One run of `make bench-gpu`: parts in order, each saved as it ends; a part that fails keeps its error.

Knows time and files; knows nothing of what is measured.
"""

from __future__ import annotations

import faulthandler
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Generic, TypeVar

import torch

from benchmarks.gpu.result import GpuResult, Part, write
from edge_vla.checkpoint import Checkpoint
from edge_vla.runtime.gpu.device import Backend, out_of_memory

log: Final = logging.getLogger("benchmarks.gpu")
T = TypeVar("T")
PATIENCE: Final = 4  # times a part's expected seconds, after which it counts as hanging
LEAST_PATIENCE_S: Final = 90.0


@dataclass(frozen=True)
class Scale:
    """How much is measured: everything on a GPU, a little of everything in a dry run."""

    model: str
    prompt: int  # tokens
    dims: int
    pictures: int
    actions: int  # timed ones per system
    rounds: int  # of turns, there and back
    system_s: float  # for one system's actions; a slow one gets fewer, and its row says how many
    frames: int  # of the demo policy
    repeats: int  # of a stage or kernel
    buffer_bytes: int  # to measure bandwidth with


FULL: Final = Scale("openvla-7b", 32, 7, 16, 200, 2, 30.0, 96, 50, 2 << 30)
DRY: Final = Scale("openvla-tiny", 12, 7, 2, 4, 1, 10.0, 2, 3, 1 << 20)


@dataclass(frozen=True)
class PlannedPart(Generic[T]):
    """`measure` fills `part`; `expected_s` is a guess, which decides whether it still fits the budget."""

    name: str
    expected_s: float
    part: Part[T]
    measure: Callable[[Run], T]


@dataclass
class Run:
    path: Path
    scale: Scale
    device: torch.device
    backend: Backend
    checkpoint: Checkpoint
    scratch: Path
    budget_s: float
    result: GpuResult
    started: float = field(default_factory=time.monotonic)

    def fill(self, planned: PlannedPart[T]) -> None:
        """Measure one part and save. Whatever goes wrong in it is its result; the others go on."""
        part, began = planned.part, time.monotonic()
        left_s = self.budget_s - (began - self.started)
        if left_s < planned.expected_s:
            part.failed = f"not started: it takes about {planned.expected_s:.0f} s, {left_s:.0f} s of --budget are left"
        else:
            log.info("%s", planned.name)
            # a kernel that never ends holds the process inside a call that no exception reaches
            faulthandler.dump_traceback_later(max(LEAST_PATIENCE_S, PATIENCE * planned.expected_s), exit=True)
            try:
                self._measure(planned)
            finally:
                faulthandler.cancel_dump_traceback_later()
        part.seconds = round(time.monotonic() - began, 1)
        if part.failed is not None:
            log.warning("%s failed: %s", planned.name, part.failed)
        self.save()

    def save(self) -> None:
        write(self.result, self.path)

    def _measure(self, planned: PlannedPart[T]) -> None:
        try:
            planned.part.measured = planned.measure(self)
        except Exception as error:  # a peer, a compiler or a driver may raise anything
            log.debug("", exc_info=error)
            planned.part.failed = _message(error)
            if lost(error):
                self.result.device_lost = planned.part.failed


def reason(error: Exception) -> str:
    """Why something failed, for its row. An error that leaves the device lost is raised again: nothing else can run."""
    if lost(error):
        raise error
    log.debug("", exc_info=error)
    return _message(error)


def lost(error: Exception) -> bool:
    """Whether the device can no longer be used. The message does not tell, so the device is probed."""
    if out_of_memory(error):
        return False
    try:
        probe()
    except RuntimeError as second:
        return not out_of_memory(second)
    return False


def probe() -> None:
    """RuntimeError where CUDA is in use and no longer computes."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        torch.ones(1, device="cuda").sum().item()


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
