"""Milliseconds between marks, read after the device has finished."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.laps: dict[str, float] = {}
        self._start = self._last = self._now()

    def mark(self, stage: str) -> None:
        now = self._now()
        self.laps[stage] = (now - self._last) * 1e3
        self._last = now

    def stop(self) -> dict[str, float]:
        """All laps, and their total."""
        return {**self.laps, "total": (self._last - self._start) * 1e3}

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
