"""Thousands of actions on end: does memory grow, does the time spread, how much faster than the reference.

    python -m benchmarks.cpu.soak --model ARTIFACT --reference CHECKPOINT --out RESULT.json

Frames are those of closed-loop episodes, drawn beforehand and shown again; a session forgets where an episode begins.
First the artifact and the reference take turns, in blocks A B B A, so that a disturbance meets both, and with them two
pieces of work that are always the same, a product and counting in Python: what their times spread is the machine's
doing. Then the artifact runs alone and resident memory is read every hundred actions.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch.profiler import ProfilerActivity

from edge_vla.bench.provenance import environment, resident_bytes
from edge_vla.demo.instructions import phrase
from edge_vla.demo.render import render, world
from edge_vla.demo.rollout import MAX_STEPS
from edge_vla.demo.world import EVALUATION_SEEDS, start, step, verdict
from edge_vla.errors import EdgeVLAError
from edge_vla.files import write_whole
from edge_vla.runtime import Policy, load

LOG: Final = logging.getLogger("benchmarks.cpu.soak")
BLOCK: Final = 25
EVERY: Final = 100  # actions between two readings of memory
WARM_UP: Final = 1000  # actions before the slope is taken: the allocator's pools fill first
MEBIBYTE: Final = 1 << 20
REFERENCE: Final = "reference"
SESSION: Final = "artifact, session"
PRODUCT, COUNTING = CONTROLS = ("always the same product", "always the same counting in Python")
CONTROL_S: Final = 0.004  # each takes about as long as an action


@dataclass(frozen=True)
class Shown:
    image: Image.Image
    instruction: str
    begins: bool


def episodes(policy: Policy, count: int, key: str | None) -> list[Shown]:
    """Frames of so many episodes, driven by the policy itself."""
    shown = []
    for number in range(count):
        seed = EVALUATION_SEEDS[number]
        state, task = start(seed, "pick" if number % 2 else "put")
        for moment in range(MAX_STEPS):
            shown.append(Shown(render(state, world(1)), phrase(task, seed, "trained"), moment == 0))
            state = step(state, policy.act(shown[-1].image, shown[-1].instruction, key).values)
            if verdict(state, task) != "running":
                break
    return shown


def plain(policy: Policy, key: str | None) -> Callable[[Shown], int]:
    return lambda shown: policy.act(shown.image, shown.instruction, key).passes


def drafting(policy: Policy, key: str | None) -> Callable[[Shown], int]:
    session = policy.session()

    def act(shown: Shown) -> int:
        if shown.begins:
            session.reset()
        return session.act(shown.image, shown.instruction, key).passes

    return act


def unchanging() -> dict[str, Callable[[Shown], int]]:
    """Work that takes `CONTROL_S` here and now, the same each time: rows by weights that fit the cache, and sums."""
    x, weight, out = torch.randn(100, 256), torch.randn(256, 256), torch.empty(100, 256)

    def multiply(count: int) -> int:
        for _ in range(count):
            torch.mm(x, weight, out=out)
        return count

    return {PRODUCT: _lasting(multiply, 100), COUNTING: _lasting(lambda count: sum(range(count)), 100_000)}


def _lasting(work: Callable[[int], int], count: int) -> Callable[[Shown], int]:
    """`work` with such a count that it takes `CONTROL_S`."""
    work(count)
    began = time.perf_counter()
    work(count)
    right = max(1, round(count * CONTROL_S / (time.perf_counter() - began)))
    return lambda _: work(right)


def turns(sides: dict[str, Callable[[Shown], int]], frames: Sequence[Shown], actions: int) -> dict[str, list[float]]:
    """Milliseconds of `actions` a side, in blocks that go there and back."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    sources = {name: cycle(frames) for name in sides}
    order, forward = list(sides), True
    while len(taken[order[0]]) < actions or len(taken[order[-1]]) < actions:
        for name in order if forward else order[::-1]:
            taken[name] += _times(sides[name], islice(sources[name], BLOCK))
        forward = not forward
    return taken


def alone(act: Callable[[Shown], int], frames: Sequence[Shown], actions: int) -> tuple[list[float], list[int]]:
    """Milliseconds of each action, and resident bytes after every `EVERY`."""
    times, resident, source = list[float](), list[int](), cycle(frames)
    while len(times) < actions:
        times += _times(act, islice(source, EVERY))
        resident.append(resident_bytes())
        if len(times) % WARM_UP == 0:
            LOG.info("%d actions, %.1f MiB", len(times), resident[-1] / MEBIBYTE)
    return times, resident


def slope(resident: Sequence[int], skip: int) -> float:
    """MiB per 1000 actions, least squares, the first `skip` readings left out."""
    kept = np.asarray(resident[skip:], dtype=np.float64) / MEBIBYTE
    return float(np.polyfit(np.arange(len(kept)) * EVERY / 1000, kept, 1)[0]) if len(kept) > 1 else 0.0


def allocations(act: Callable[[Shown], int], frames: Sequence[Shown]) -> dict[str, float]:
    """Times that torch takes memory in an action, and bytes that outlive it."""
    count = min(len(frames), 20)
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        for shown in frames[:count]:
            act(shown)
    made = sum(event.self_cpu_memory_usage > 0 for event in watched.events() or ())
    kept = sum(event.self_cpu_memory_usage for event in watched.key_averages())
    return {
        "tensors made per action": made / count,
        "bytes kept per action": kept / count,
    }


def spread(times: Sequence[float]) -> dict[str, float]:
    p50, p99 = (float(np.percentile(times, q)) for q in (50, 99))
    return {
        "actions": len(times),
        "mean_ms": round(float(np.mean(times)), 3),
        "p50_ms": round(p50, 3),
        "p99_ms": round(p99, 3),
        "p99/p50": round(p99 / p50, 3),
    }


def claims(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What was to be reached, beside what was."""
    alone, compared = result["alone"], result["compared in turns"]
    faster = result["times faster than the reference, by p50"]
    ours = [name for name in compared if name not in (REFERENCE, *CONTROLS)]
    for name in ours:
        yield _claim(f"{name}: times faster than the reference", faster[name], "at least", 3.0)
    for name in ours:
        yield _claim(f"{name}: p99/p50 of {compared[name]['actions']} actions, in turns", compared[name]["p99/p50"])
    yield _claim(f"{SESSION}: p99/p50 of {alone['actions']} actions, alone", alone["p99/p50"])
    yield _claim("MiB of memory per 1000 actions", alone["MiB per 1000 actions"], "at most", 1.0)
    yield _claim("tensors that torch makes in an action", alone["tensors made per action"], "at most", 0.0)
    yield _claim("bytes of tensors that outlive an action", alone["bytes kept per action"], "at most", 0.0)


def _claim(what: str, value: float, which: str = "at most", bar: float = 1.5) -> dict[str, Any]:
    return {"what": what, "value": value, which: bar, "holds": value <= bar if which == "at most" else value >= bar}


def _times(act: Callable[[Shown], int], frames: Iterator[Shown]) -> list[float]:
    times = []
    for shown in frames:
        began = time.perf_counter()
        act(shown)
        times.append((time.perf_counter() - began) * 1e3)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu.soak", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--unnorm-key")
    parser.add_argument("--actions", type=int, default=10_000)
    parser.add_argument("--compared", type=int, default=2_000, help="actions a side, in turns")
    parser.add_argument("--episodes", type=int, default=12)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if given.threads:
        torch.set_num_threads(given.threads)
    policy, reference, key = load(given.model, "cpu"), load(given.reference, "cpu"), given.unnorm_key
    frames = episodes(policy, given.episodes, key)
    sides = {
        REFERENCE: plain(reference, key),
        "artifact": plain(policy, key),
        SESSION: drafting(policy, key),
        **unchanging(),
    }
    compared = {name: spread(times) for name, times in turns(sides, frames, given.compared).items()}
    times, resident = alone(sides[SESSION], frames, given.actions)
    result: dict[str, Any] = {
        "version": 1,
        "kind": "steady",
        "environment": environment(),
        "kernels": dict(policy.network.kernels),
        "frames": len(frames),
        "compared in turns": compared,
        "times faster than the reference, by p50": {
            name: round(compared[REFERENCE]["p50_ms"] / row["p50_ms"], 3)
            for name, row in compared.items()
            if name not in CONTROLS
        },
        "alone": {
            **spread(times),
            "MiB per 1000 actions": round(slope(resident, WARM_UP // EVERY), 4),
            "resident_MiB": [round(value / MEBIBYTE, 2) for value in resident[:: max(1, len(resident) // 20)]],
            **allocations(sides[SESSION], frames),
        },
    }
    result["claims"] = list(claims(result))
    write_whole(given.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"error: {error}")
