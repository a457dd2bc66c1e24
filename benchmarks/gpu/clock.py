"""Milliseconds on a device, by its own clock where it has one. Knows nothing of what is timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

WARM_UPS = 3
FLUSH = 1 << 30  # bytes written before each run: many times any L2, and a quarter of a millisecond on the fastest card


def device_ms(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median of `repeats` runs after a warm-up, by the device's own clock where it has one.

    There each run finds no inputs in the L2, and a device that is busy until the host has launched all of it.
    """
    with torch.inference_mode():
        for _ in range(WARM_UPS):
            work()
        if device.type != "cuda":
            return statistics.median(host_ms(work) for _ in range(repeats))
        event: Callable[..., torch.cuda.Event] = torch.cuda.Event
        marks = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(repeats)]
        before = room_to_flush(device)
        for began, ended in marks:
            before.zero_()
            began.record()
            work()
            ended.record()
        torch.cuda.synchronize(device)
        return statistics.median(float(began.elapsed_time(ended)) for began, ended in marks)


def room_to_flush(device: torch.device) -> Tensor:
    """Less on a card that has little left."""
    return torch.empty(min(FLUSH, torch.cuda.mem_get_info(device)[0] // 4), dtype=torch.uint8, device=device)


def host_ms(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3
