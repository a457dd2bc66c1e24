"""Milliseconds on a device, by its own clock where it has one. Knows nothing of what is timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

WARM_UPS = 3


def device_ms(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median of `repeats` runs after a warm-up, by the device's own clock where it has one."""
    with torch.inference_mode():
        for _ in range(WARM_UPS):
            work()
        if device.type != "cuda":
            return statistics.median(host_ms(work) for _ in range(repeats))
        event: Callable[..., torch.cuda.Event] = torch.cuda.Event
        marks = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(repeats)]
        for began, ended in marks:
            began.record()
            work()
            ended.record()
        torch.cuda.synchronize(device)
        return statistics.median(float(began.elapsed_time(ended)) for began, ended in marks)


def host_ms(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3
