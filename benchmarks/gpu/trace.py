"""Every kernel of one action as the device ran it inside the graph: launches, microseconds, and what lies between.

Knows the profiler; knows nothing of what is computed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any, Final

import torch

from benchmarks.gpu.configurations import Configuration, load
from benchmarks.gpu.result import KernelTime, Trace
from benchmarks.gpu.run import Run
from benchmarks.gpu.systems import Task
from edge_vla.errors import BackendError
from edge_vla.runtime.gpu.engine import Shape

ACTIONS: Final = 5
SHORT: Final = 80  # characters of a kernel's name; a library's templates take hundreds


def trace(run: Run, configuration: Configuration) -> Trace:
    """BackendError where the profiler records no kernel."""
    engine = load(run, configuration)
    task = Task.make(run.checkpoint, 1, run.scale.prompt, run.scale.dims, run.device)
    shape = Shape(run.scale.prompt, run.scale.dims)
    for _ in range(3):
        engine.decide(task.prompt, task.pixels[0], run.scale.dims)
    activity: Any = torch.profiler.ProfilerActivity
    on_gpu = run.device.type == "cuda"
    kinds = [activity.CUDA] if on_gpu else [activity.CPU]
    with torch.profiler.profile(activities=kinds) as profile, torch.inference_mode():
        for _ in range(ACTIONS):
            engine.run("action", shape)
            if on_gpu:
                torch.cuda.synchronize(run.device)
    device: Any = torch.autograd.DeviceType  # type: ignore[attr-defined]
    where = device.CUDA if on_gpu else device.CPU  # the host's own calls are recorded too
    events = [one for one in profile.events() if one.device_type == where]
    return summary([(one.name, one.time_range.start, one.time_range.end) for one in events], ACTIONS)


def summary(spans: list[tuple[str, float, float]], actions: int) -> Trace:
    """(name, start, end in microseconds) of every kernel of so many actions -> one action's means."""
    if not spans:
        raise BackendError("the profiler recorded no kernel: CUPTI may be in use by another program")
    spans = sorted(spans, key=lambda span: span[1])
    times, counts = defaultdict[str, float](float), defaultdict[str, int](int)
    busy, end, gaps = 0.0, spans[0][1], list[float]()
    for name, began, ended in spans:
        short = re.sub(r"\s+", " ", name)[:SHORT]
        times[short] += ended - began
        counts[short] += 1
        busy += max(0.0, ended - max(began, end))
        gaps.append(max(0.0, began - end))
        end = max(end, ended)
    # The longest gaps lie between actions, where the host waits.
    within = sorted(gaps)[: len(gaps) - (actions - 1)]
    order = sorted(times, key=lambda name: -times[name])
    return Trace(
        span_us=(busy + sum(within)) / actions,
        busy_us=busy / actions,
        gaps_us=sum(within) / actions,
        launches=len(spans) / actions,
        kernels=[KernelTime(name, counts[name] / actions, times[name] / actions) for name in order],
    )
