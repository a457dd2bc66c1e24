"""The decoder at the true shapes of a network, random weights, beside the machine's limits and other engines.

    python -m benchmarks.cpu.engine --model random:openvla-7b --bits 4 --prompt 288 --vision \\
        --llamacpp PYTHON --out RESULT.json

One process measures read bandwidth (best of sums over 2 GB) and the rate of matrix products; then, in turns, prefill
and decode step of the packed decoder, of transformers' eager bf16 layers and, with `--llamacpp`, of llama.cpp in a
child process; the two rates again, of which the better counts; then the towers. transformers gets fewer layers than the
network has (`--reference-layers`), because 13 GB of bf16 leave no memory beside it; its times are multiplied up.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from benchmarks import study
from benchmarks.cpu.decoders import BF16, CPU, Eager, Packed, packed_decoder
from benchmarks.cpu.llamacpp import LlamaCpp
from benchmarks.cpu.results import EAGER, LLAMA_CPP, PACKED, EngineResult, StageTimes, SystemTimes
from benchmarks.study import Target
from edge_vla.device import limits
from edge_vla.device.memory import peak_resident_bytes
from edge_vla.runtime.cpu.native.targets import split
from edge_vla.runtime.kernels import AUTO
from edge_vla.spec import OPENVLA_7B, TINY, PolicySpec

LOG: Final = logging.getLogger("benchmarks.cpu.engine")
MODELS: Final = {"random:openvla-7b": OPENVLA_7B, "random:openvla-tiny": TINY}
BUFFER_BYTES: Final = 2 << 30  # summed to measure read bandwidth

Call = Callable[[], object]
Stages = Mapping[tuple[str, str], tuple[Call, int]]  # (system, stage) -> a call, and how often in a row
Times = dict[tuple[str, str], list[float]]


@dataclass(frozen=True)
class Settings:
    """What one run measures."""

    model: str = "random:openvla-7b"
    bits: int = 4
    kernel: str = AUTO
    layers: int | None = None  # of the packed decoder; None: all
    reference_layers: int = 6  # of transformers; 0: without it
    prompt_rows: int | None = None  # image and text; None: 27 of text
    dims: int = 7
    rounds: int = 6
    vision: bool = False
    llamacpp: str | None = None  # a Python that has it
    buffer_bytes: int = BUFFER_BYTES

    @property
    def spec(self) -> PolicySpec:
        return MODELS[self.model]

    @property
    def rows(self) -> int:
        return self.prompt_rows or self.spec.patches + 27


def in_turns(stages: Stages, rounds: int) -> Times:
    """Milliseconds of each stage, forward and back; the first call of each row of calls is left out."""
    times: Times = {name: [] for name in stages}
    names = list(stages)
    with torch.inference_mode():
        for number in range(rounds):
            for name in names if number % 2 == 0 else names[::-1]:
                call, repeats = stages[name]
                for turn in range(repeats + 1):
                    began = time.perf_counter()
                    call()
                    if turn:
                        times[name].append((time.perf_counter() - began) * 1e3)
            fastest = {" ".join(name): round(min(ms), 1) for name, ms in times.items()}
            LOG.info("round %d of %d: %s", number + 1, rounds, fastest)
    return times


def measure(settings: Settings, turns: Callable[[Stages, int], Times] = in_turns) -> EngineResult:
    """One run; `turns` times the stages. Milliseconds are of the whole network: fewer layers are multiplied up."""
    spec, dims, text_rows = settings.spec, settings.dims, settings.rows - settings.spec.patches
    ceilings = limits.measure(spec, CPU, text_rows, settings.buffer_bytes)
    LOG.info("reads %.1f GB/s, bf16 %.0f GFLOP/s", ceilings.read_bytes_per_s / 1e9, ceilings.gemm_flops["bf16"] / 1e9)
    layers = {PACKED: settings.layers or spec.decoder.layers, EAGER: settings.reference_layers}
    decoder, packed_bytes, kernels = packed_decoder(spec, settings.bits, layers[PACKED], settings.kernel)
    ours = Packed(decoder, settings.rows, dims)
    stages = {**_stages(PACKED, ours.prefill, ours.step, dims), (PACKED, "verify"): (ours.verify, 3)}
    if settings.reference_layers:
        eager = Eager(spec, settings.reference_layers, settings.rows)
        stages |= _stages(EAGER, eager.prefill, eager.step, dims)
    threads, python = torch.get_num_threads(), settings.llamacpp
    with LlamaCpp(python, spec.decoder, settings.rows, threads) if python else nullcontext() as peer:
        if peer is not None:
            stages |= _stages(LLAMA_CPP, peer.prefill, peer.step, dims)
            layers[LLAMA_CPP] = spec.decoder.layers
        times = turns(stages, settings.rounds)
    ceilings = ceilings.or_better(limits.measure(spec, CPU, text_rows, settings.buffer_bytes))
    vision = vision_ms(spec, settings.rounds, turns) if settings.vision else {}
    systems = [
        _system(name, times, count, spec.decoder.layers, dims, vision.get(name))
        for name, count in layers.items()
        if count
    ]
    arithmetic = _arithmetic(kernels, ceilings)
    stored = packed_bytes * spec.decoder.layers // layers[PACKED]
    step_limit_ms, prefill_limit_ms = _limits(spec, stored, text_rows, dims, arithmetic, ceilings)
    return EngineResult(
        model=settings.model,
        bits=settings.bits,
        kernels=kernels,
        layers=spec.decoder.layers,
        prompt_rows=settings.rows,
        ceilings=ceilings,
        step_limit_ms=step_limit_ms,
        prefill_limit_ms=prefill_limit_ms,
        arithmetic=arithmetic,
        systems=systems,
        peak_bytes=peak_resident_bytes(),
        llama_cpp=None if peer is None else peer.facts,
        targets=list(targets(systems, step_limit_ms, prefill_limit_ms, arithmetic)),
    )


def _stages(system: str, prefill: Call, step: Call, dims: int) -> dict[tuple[str, str], tuple[Call, int]]:
    return {(system, "prefill"): (prefill, 1), (system, "step"): (step, dims - 1)}


def _system(name: str, times: Times, layers: int, of: int, dims: int, vision: float | None) -> SystemTimes:
    """One system's times, scaled from `layers` to `of` layers."""

    def reduced(reduce: Callable[[Sequence[float]], float]) -> StageTimes:
        found = {stage: reduce(taken) * of / layers for (system, stage), taken in times.items() if system == name}
        verify = found.get("verify")
        return StageTimes(round(found["prefill"], 2), round(found["step"], 2), verify and round(verify, 2))

    median = reduced(statistics.median)
    accepted = None if median.verify_ms is None else round(median.prefill_ms + median.verify_ms, 1)
    decoder_ms = round(median.prefill_ms + (dims - 1) * median.step_ms, 1)
    return SystemTimes(name, layers, median, reduced(min), decoder_ms, accepted, vision)


def _arithmetic(kernels: Mapping[str, str], ceilings: limits.Ceilings) -> str:
    """What all kernels compute in, as their names end: int8 where activations are rounded too."""
    found = {split(kernel)[0].rpartition("/")[2] for kernel in kernels.values()}
    return found.pop() if len(found) == 1 and found <= set(ceilings.gemm_flops) else "bf16"


def _limits(
    spec: PolicySpec, stored: int, text_rows: int, dims: int, arithmetic: str, ceilings: limits.Ceilings
) -> tuple[float, float]:
    """Milliseconds: one step's bytes alone, and a prefill's arithmetic alone."""
    passes = {cost.name: cost for cost in limits.costs(spec, stored, text_rows, dims, arithmetic=arithmetic)}
    step = passes["one step"]
    step_ms, _ = ceilings.limit_ms(step)
    _, prefill_ms = ceilings.limit_ms(passes["prefill"])
    return round(step_ms / step.times, 2), round(prefill_ms, 2)


def targets(
    systems: Sequence[SystemTimes], step_limit_ms: float, prefill_limit_ms: float, arithmetic: str
) -> Iterator[Target]:
    """What this engine set out to reach: shares of the machine's limits, and ratios to the other systems' medians."""
    ours, *others = systems
    yield _at_least("step, share of read bandwidth", step_limit_ms / ours.median.step_ms, 0.75)
    yield _at_least(f"prefill, share of {arithmetic} rate", prefill_limit_ms / ours.median.prefill_ms, 0.75)
    for other in others:
        if other.name == EAGER:
            yield _at_least("step, times faster than eager", other.median.step_ms / ours.median.step_ms, 4.0)
            if ours.action_ms and other.action_ms:
                yield _at_least("whole action, times faster than eager", other.action_ms / ours.action_ms, 1.2)
        else:
            yield _at_least("decoder part, times faster than llama.cpp", other.decoder_ms / ours.decoder_ms, 1.0)


def _at_least(name: str, ratio: float, bound: float) -> Target:
    return Target(name, round(ratio, 4), "at least", bound)


def vision_ms(spec: PolicySpec, rounds: int, turns: Callable[[Stages, int], Times] = in_turns) -> dict[str, float]:
    """Median milliseconds of towers and projector in bf16, random weights: ours and the reference's."""
    from edge_vla.runtime.cpu.native.library import fast
    from edge_vla.runtime.cpu.native.vision import NativeVision
    from edge_vla.runtime.network import Vision
    from edge_vla.runtime.vision.towers import TorchVision, with_flat_patches

    torch.manual_seed(0)
    with torch.inference_mode():
        reference = TorchVision(spec).to(BF16).eval()
        ours: Vision = (
            NativeVision(spec, reference.state_dict())
            if fast()
            else with_flat_patches(TorchVision(spec).to(BF16).eval())
        )
        pixels = torch.randn(1, 3 * len(spec.towers), spec.image_size, spec.image_size)
        stages: Stages = {
            (PACKED, "vision"): (lambda: ours(pixels), 1),
            (EAGER, "vision"): (lambda: reference(pixels), 1),
        }
        return {system: round(statistics.median(ms), 1) for (system, _), ms in turns(stages, rounds).items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu.engine", description=__doc__)
    parser.add_argument("--model", choices=list(MODELS), default="random:openvla-7b")
    parser.add_argument("--bits", type=int, choices=(4, 8, 16), default=4)
    parser.add_argument("--kernel", default=AUTO, help="kernel of the packed decoder")
    parser.add_argument("--layers", type=int, help="of the packed decoder; all by default")
    parser.add_argument("--reference-layers", type=int, default=6, help="of transformers; 0: without it")
    parser.add_argument("--prompt", type=int, help="rows of a prefill, image and text; 27 of text by default")
    parser.add_argument("--dims", type=int, default=7, help="tokens of an action")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--vision", action="store_true", help="measure the towers too")
    parser.add_argument("--llamacpp", metavar="PYTHON", help="a Python with llama-cpp-python and gguf")
    parser.add_argument("--threads", type=int, help="torch's default by default")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    settings = Settings(
        given.model,
        given.bits,
        given.kernel,
        given.layers,
        given.reference_layers,
        given.prompt,
        given.dims,
        given.rounds,
        given.vision,
        given.llamacpp,
    )
    study.write_result(given.out, measure(settings))


if __name__ == "__main__":
    study.run(main)
