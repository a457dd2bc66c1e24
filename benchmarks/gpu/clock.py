"""Milliseconds on a device, by its own clock where it has one. Knows nothing of what is timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

WARM_UPS = 3
FLUSH_BYTES = 1 << 30  # read before each run: larger than any L2, a quarter of a millisecond on the fastest device


def device_ms(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median of `repeats` runs after a warm-up.

    On CUDA each run starts with a cold and clean L2, behind a read that keeps the device busy until the host has
    launched all: a write would leave lines that the work must write back.
    """
    with torch.inference_mode():
        for _ in range(WARM_UPS):
            work()
        if device.type != "cuda":
            return statistics.median(host_ms(work) for _ in range(repeats))
        event: Callable[..., torch.cuda.Event] = torch.cuda.Event
        marks = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(repeats)]
        buffer = flush_buffer(device)
        for began, ended in marks:
            buffer.sum()
            began.record()
            work()
            ended.record()
        torch.cuda.synchronize(device)
        return statistics.median(float(began.elapsed_time(ended)) for began, ended in marks)


def flush_buffer(device: torch.device) -> Tensor:
    """Smaller where the device has little memory left."""
    size = min(FLUSH_BYTES, torch.cuda.mem_get_info(device)[0] // 4)
    return torch.zeros(size // 4, dtype=torch.float32, device=device)


def host_ms(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3
