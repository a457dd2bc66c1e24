"""One run of `make bench-gpu` as it fills up: parts in order, each saved as it ends, a failed one kept with its error.

Knows time and files; knows nothing of what is measured.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from edge_vla.checkpoint import Checkpoint
from edge_vla.files import write_whole
from edge_vla.runtime.gpu.device import Backend, out_of_memory

log: Final = logging.getLogger("benchmarks.gpu.__main__")


@dataclass(frozen=True)
class Scale:
    """How much is measured: everything on a GPU, a little of everything in a dry run."""

    model: str
    text: int  # prompt tokens
    dims: int
    pictures: int
    actions: int  # timed ones a side
    rounds: int  # there and back
    side_s: float  # for one side's actions; a slow side gets fewer, and its row says how many
    frames: int  # of the demo policy
    repeats: int  # of a stage or kernel
    buffer: int  # bytes to measure bandwidth with


FULL: Final = Scale("openvla-7b", 32, 7, 16, 200, 2, 30.0, 96, 50, 2 << 30)
DRY: Final = Scale("openvla-tiny", 12, 7, 2, 4, 1, 10.0, 2, 3, 1 << 20)


@dataclass
class Run:
    """`result` is a whole JSON document after each part."""

    path: Path
    scale: Scale
    device: torch.device
    backend: Backend
    checkpoint: Checkpoint
    scratch: Path
    budget_s: float
    result: dict[str, Any]
    began: float = field(default_factory=time.monotonic)

    def part(self, name: str, measure: Callable[[], Mapping[str, Any]], least_s: float = 0.0) -> None:
        """Measure one part and save. Whatever goes wrong in it is its result: the others go on."""
        left = self.budget_s - (time.monotonic() - self.began)
        began = time.monotonic()
        if "lost" in self.result:
            found: dict[str, Any] = {"failed": f"not begun: {self.result['lost']}"}
        elif left < least_s:
            found = {"failed": f"not begun: {left:.0f} s were left, it takes about {least_s:.0f}"}
        else:
            log.info("%s", name)
            found = self._measured(measure)
        self.result["parts"][name] = {**found, "seconds": round(time.monotonic() - began, 1)}
        if "failed" in found:
            log.warning("%s failed: %s", name, found["failed"])
        self.save()

    def save(self) -> None:
        write_whole(self.path, json.dumps(_finite(self.result), indent=1, allow_nan=False) + "\n")

    def found(self, name: str) -> Mapping[str, Any] | None:
        """A part that has been measured, or None."""
        part: Mapping[str, Any] | None = self.result["parts"].get(name)
        return None if part is None or "failed" in part else part

    def _measured(self, measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        try:
            return dict(measure())
        except Exception as error:  # a peer, a compiler or a driver may raise anything
            log.debug("", exc_info=error)
            if lost(error):
                self.result["lost"] = _words(error)
            return {"failed": _words(error)}


def reason(error: Exception) -> str:
    """Why something failed, for its row. What the device does not recover from is raised again: nothing else runs."""
    if lost(error):
        raise error
    return _words(error)


def lost(error: Exception) -> bool:
    """Whether the device can no longer be used, which its words do not tell: it is asked."""
    if out_of_memory(error):
        return False
    try:
        probe()
    except RuntimeError as answer:
        return not out_of_memory(answer)
    return False


def probe() -> None:
    """RuntimeError where CUDA is in use and does not compute any more."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        torch.ones(1, device="cuda").sum().item()


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: they are written as words."""
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return str(value)
    return value
