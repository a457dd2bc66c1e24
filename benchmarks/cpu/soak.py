"""Thousands of actions in a row: does memory grow, do times spread, how much faster than the reference.

    python -m benchmarks.cpu.soak --model ARTIFACT --reference CHECKPOINT --out RESULT.json

The frames of some closed-loop episodes are drawn beforehand and repeated; a session is reset where an episode begins.
First artifact, session and reference take turns in blocks A B B A, so that a disturbance meets all, and with them two
pieces of constant work, a matrix product and counting in Python: their spread is the machine's own. Then the session
runs alone, and resident memory is read every hundred actions.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch.profiler import ProfilerActivity

from benchmarks import study
from benchmarks.cpu.results import SoakResult, Spread
from benchmarks.study import Target
from edge_vla.demo.instructions import phrase
from edge_vla.demo.render import render, world
from edge_vla.demo.world import EVALUATION_SEEDS, State, drive, start
from edge_vla.demo.world import Action as Move
from edge_vla.device.memory import resident_bytes
from edge_vla.runtime import Policy, load

LOG: Final = logging.getLogger("benchmarks.cpu.soak")
BLOCK: Final = 25  # actions in a row, in turns
EVERY: Final = 100  # actions between two readings of memory
WARM_UP: Final = 1000  # actions before growth is fitted: the allocator's pools fill first
MEBIBYTE: Final = 1 << 20
REFERENCE, ARTIFACT, SESSION = "reference", "artifact", "artifact, session"
PRODUCT, COUNTING = "constant matrix product", "constant counting in Python"
CONTROL_S: Final = 0.004  # each control takes about as long as an action


@dataclass(frozen=True)
class Shown:
    """One frame of an episode."""

    image: Image.Image
    instruction: str
    begins: bool  # an episode


Act = Callable[[Shown], object]


def episodes(policy: Policy, count: int, key: str | None) -> list[Shown]:
    """The frames of so many episodes, driven by the policy itself."""
    shown = list[Shown]()
    for number in range(count):
        seed = EVALUATION_SEEDS[number]
        state, task = start(seed, "pick" if number % 2 else "put")
        text, first = phrase(task, seed), len(shown)

        def choose(state: State, text: str = text, first: int = first) -> Move:
            shown.append(Shown(render(state, world(1)), text, len(shown) == first))
            return policy.act(shown[-1].image, text, key).values

        for _ in drive(state, task, choose):
            pass
    return shown


def plain(policy: Policy, key: str | None) -> Act:
    return lambda shown: policy.act(shown.image, shown.instruction, key)


def drafting(policy: Policy, key: str | None) -> Act:
    session = policy.session()

    def act(shown: Shown) -> object:
        if shown.begins:
            session.reset()
        return session.act(shown.image, shown.instruction, key)

    return act


def controls() -> dict[str, Act]:
    """Work that takes `CONTROL_S` on this machine, always the same: products that fit the cache, and sums."""
    x, weight, out = torch.randn(100, 256), torch.randn(256, 256), torch.empty(100, 256)

    def multiply(count: int) -> None:
        for _ in range(count):
            torch.mm(x, weight, out=out)

    return {PRODUCT: _lasting(multiply, 100), COUNTING: _lasting(lambda count: sum(range(count)), 100_000)}


def _lasting(work: Callable[[int], object], count: int) -> Act:
    """`work` with the count that takes `CONTROL_S`."""
    work(count)
    began = time.perf_counter()
    work(count)
    right = max(1, round(count * CONTROL_S / (time.perf_counter() - began)))
    return lambda _: work(right)


def in_turns(systems: Mapping[str, Act], frames: Sequence[Shown], actions: int) -> dict[str, list[float]]:
    """Milliseconds of at least `actions` actions of each system, in blocks that go forward and back."""
    times: dict[str, list[float]] = {name: [] for name in systems}
    sources = {name: cycle(frames) for name in systems}
    order, forward = list(systems), True
    while len(times[order[0]]) < actions or len(times[order[-1]]) < actions:
        for name in order if forward else order[::-1]:
            times[name] += _times(systems[name], islice(sources[name], BLOCK))
        forward = not forward
    return times


def alone(act: Act, frames: Sequence[Shown], actions: int) -> tuple[list[float], list[int]]:
    """Milliseconds of each action, and resident bytes after every `EVERY`."""
    times, resident, source = list[float](), list[int](), cycle(frames)
    while len(times) < actions:
        times += _times(act, islice(source, EVERY))
        resident.append(resident_bytes())
        if len(times) % WARM_UP == 0:
            LOG.info("%d actions, %.1f MiB", len(times), resident[-1] / MEBIBYTE)
    return times, resident


def _times(act: Act, frames: Iterator[Shown]) -> list[float]:
    times = []
    for shown in frames:
        began = time.perf_counter()
        act(shown)
        times.append((time.perf_counter() - began) * 1e3)
    return times


def growth(resident: Sequence[int], skip: int) -> float:
    """MiB per 1000 actions, by least squares, without the first `skip` readings."""
    kept = np.asarray(resident[skip:], dtype=np.float64) / MEBIBYTE
    return float(np.polyfit(np.arange(len(kept)) * EVERY / 1000, kept, 1)[0]) if len(kept) > 1 else 0.0


def allocations(act: Act, frames: Sequence[Shown]) -> tuple[float, float]:
    """How often torch allocates in an action, and the bytes that outlive it; means of at most 20 actions."""
    count = min(len(frames), 20)
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for shown in frames[:count]:
            act(shown)
    allocated = sum(event.self_cpu_memory_usage > 0 for event in profiler.events() or ())
    kept = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    return allocated / count, kept / count


def spread(name: str, times: Sequence[float]) -> Spread:
    p50, p99 = (round(float(np.percentile(times, q)), 3) for q in (50, 99))
    return Spread(name, len(times), round(float(np.mean(times)), 3), p50, p99)


def targets(
    reference: Spread, systems: Sequence[Spread], alone: Spread, growth_mib: float, tensors: float, kept: float
) -> Iterator[Target]:
    """What was to be reached, beside what was measured."""
    for one in systems:
        faster = round(reference.p50_ms / one.p50_ms, 3)
        yield Target(f"{one.name}: times faster than the reference", faster, "at least", 3.0)
    for one, how in [*((one, "in turns") for one in systems), (alone, "alone")]:
        yield Target(f"{one.name}: p99/p50 of {one.actions} actions, {how}", round(one.p99_over_p50, 3), "at most", 1.5)
    yield Target("memory growth, MiB per 1000 actions", growth_mib, "at most", 1.0)
    yield Target("tensors allocated by torch in an action", tensors, "at most", 0.0)
    yield Target("bytes of tensors that outlive an action", kept, "at most", 0.0)


def soak(
    policy: Policy, reference: Policy, key: str | None, frames: Sequence[Shown], compared: int, actions: int
) -> SoakResult:
    """`compared` actions of each system in turns, then `actions` of a session alone."""
    session = drafting(policy, key)
    systems = {REFERENCE: plain(reference, key), ARTIFACT: plain(policy, key), SESSION: session, **controls()}
    spreads = {name: spread(name, times) for name, times in in_turns(systems, frames, compared).items()}
    times, resident = alone(session, frames, actions)
    by_itself, growth_mib = spread(SESSION, times), round(growth(resident, WARM_UP // EVERY), 4)
    tensors, kept = allocations(session, frames)
    ours = [spreads[ARTIFACT], spreads[SESSION]]
    return SoakResult(
        kernels=dict(policy.network.kernels),
        frames=len(frames),
        reference=spreads[REFERENCE],
        artifact=spreads[ARTIFACT],
        session=spreads[SESSION],
        controls=[spreads[PRODUCT], spreads[COUNTING]],
        alone=by_itself,
        growth_mib_per_1000_actions=growth_mib,
        resident_mib=[round(value / MEBIBYTE, 2) for value in resident[:: max(1, len(resident) // 20)]],
        tensors_allocated_per_action=tensors,
        bytes_kept_per_action=kept,
        targets=list(targets(spreads[REFERENCE], ours, by_itself, growth_mib, tensors, kept)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu.soak", description=__doc__)
    parser.add_argument("--model", required=True, help="artifact of the demo policy")
    parser.add_argument("--reference", required=True, help="its checkpoint")
    parser.add_argument("--unnorm-key")
    parser.add_argument("--actions", type=int, default=10_000, help="of the session alone")
    parser.add_argument("--compared", type=int, default=2_000, help="actions of each system, in turns")
    parser.add_argument("--episodes", type=int, default=12, help="that the frames come from")
    parser.add_argument("--threads", type=int, help="torch's default by default")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    policy, reference = load(given.model, "cpu"), load(given.reference, "cpu")
    frames = episodes(policy, given.episodes, given.unnorm_key)
    result = soak(policy, reference, given.unnorm_key, frames, given.compared, given.actions)
    study.write_result(given.out, result)


if __name__ == "__main__":
    study.run(main)
