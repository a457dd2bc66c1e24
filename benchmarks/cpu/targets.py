"""Every target of the C engine on this machine, beside what its own instructions and the memory can do.

    python -m benchmarks.cpu.targets --demo ARTIFACT --out benchmarks/results/cpu-targets.json

At 7B shapes with int4 weights: the step's bytes over the read bandwidth, and the prefill's products over the most that
the target's registers do (`peaks.c`), both taken before and after and the better kept. Then whole actions of the demo
policy in turns with its bf16 reference and transformers' eager bf16, in a process whose torch may use no more
instructions than the target has. One run; every ratio is of medians of the same turns.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks import study
from benchmarks.cpu.decoders import Packed, packed_decoder
from benchmarks.cpu.engine import Stages, in_turns
from benchmarks.cpu.results import TargetAction, TargetShare, TargetsResult
from edge_vla.device.limits import uniform
from edge_vla.runtime.cpu.native.decoder import NativeDecoder
from edge_vla.runtime.cpu.native.layout import Layout
from edge_vla.runtime.cpu.native.library import require_library
from edge_vla.runtime.cpu.native.targets import HERE, SCALAR, Target, named, runnable
from edge_vla.spec import OPENVLA_7B, PolicySpec

LOG: Final = logging.getLogger("benchmarks.cpu.targets")
PEAKS: Final = Path(__file__).with_name("peaks.c")
LOOPS: Final = 2_000_000
BUFFER: Final = 1 << 30  # bytes that are summed
KERNELS: Final = ("native", "native/int8")
AVX2_ONLY: Final = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
MASKS: Final[Mapping[str, Mapping[str, str]]] = {  # what torch may use where the target has no more
    "avx2": AVX2_ONLY,
    "avx2-vnni": {**AVX2_ONLY, "ONEDNN_MAX_CPU_ISA": "AVX2_VNNI"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "avx512-vnni": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
}


def peaks(target: Target) -> dict[str, float]:
    """Products a second on all threads, of floats, bytes and pairs of bf16; the best of three."""
    with tempfile.TemporaryDirectory() as directory:
        file = f"{directory}/peaks.so"
        flags = ["-O2", "-std=gnu11", "-w", "-shared", "-fPIC", *target.flags, f"-D{target.define}", f"-I{HERE}"]
        subprocess.run(["cc", *flags, "-o", file, str(PEAKS)], check=True)
        loaded, threads = ctypes.CDLL(file), torch.get_num_threads()
    rates = {}
    with ThreadPoolExecutor(threads) as pool:
        for name in ("float", "byte", "bf16"):
            function = getattr(loaded, f"{name}_products")
            function.restype, best = ctypes.c_int64, 0.0
            for _ in range(3):
                began = time.perf_counter()
                done = sum(pool.map(function, [ctypes.c_int64(LOOPS)] * threads))
                best = max(best, done / (time.perf_counter() - began))
            rates[name] = best
    return rates


def reading() -> float:
    """Bytes a second, the best of five sums."""
    source, best = torch.ones(BUFFER // 4), 0.0
    for _ in range(5):
        began = time.perf_counter()
        source.sum()
        best = max(best, source.nbytes / (time.perf_counter() - began))
    return best


def decoders(spec: PolicySpec, targets: Sequence[Target], layers: int) -> dict[str, NativeDecoder]:
    """One for each kernel of each target, by name; those of one layout share their weights."""
    packed, made = dict[tuple[Layout, str], NativeDecoder](), dict[str, NativeDecoder]()
    for target in targets:
        loaded = require_library(target)
        for kernel in KERNELS:
            key, name = (Layout.of(loaded), kernel), f"{kernel}@{target.name}"
            if key not in packed:
                decoder = packed_decoder(spec, 4, layers, name)[0]
                assert isinstance(decoder, NativeDecoder), "its kernel is native"
                packed[key] = decoder
            made[name] = packed[key].compiled_as(loaded)
    return made


def product_peak(kernel: str, rates: Mapping[str, float]) -> float:
    """Of the instructions that a kernel's prefill is made of, for int4 weights."""
    if kernel == "native/int8":
        return rates["byte"]
    return rates["bf16"] or rates["byte"] / 2


def shares(targets: Sequence[Target], layers: int, rows: int, rounds: int) -> tuple[list[TargetShare], float]:
    """Step and prefill of every target in turns, and the bandwidth that was read at."""
    spec = dataclasses.replace(OPENVLA_7B, decoder=dataclasses.replace(OPENVLA_7B.decoder, layers=layers))
    rates, bandwidth = {target.name: peaks(target) for target in targets}, reading()
    stages: dict[tuple[str, str], tuple[Callable[[], object], int]] = {}
    made_for = decoders(spec, targets, layers)
    for target in targets:
        for kernel in KERNELS:
            name = f"{kernel}@{target.name}"
            ours = Packed(made_for[name], rows, 7)
            stages[name, "prefill"] = (ours.prefill, 1)
            if kernel == "native":  # a step is the same in both
                stages[name, "step"] = (ours.step, 6)
    times = in_turns(stages, rounds)
    bandwidth = max(bandwidth, reading())
    again = {target.name: peaks(target) for target in targets}
    made = []
    for target in targets:
        best = {name: max(rate, again[target.name][name]) for name, rate in rates[target.name].items()}
        for kernel in KERNELS:
            name = f"{kernel}@{target.name}"
            step = times.get((name, "step"))
            made.append(_share(name, spec, times[name, "prefill"], step, product_peak(kernel, best), bandwidth, rows))
    return made, bandwidth


def _share(
    name: str, spec: PolicySpec, prefill: Sequence[float], step: Sequence[float] | None, peak: float, bandwidth: float,
    rows: int,
) -> TargetShare:  # fmt: skip
    weights = sum(n * k for n, k in spec.decoder.linears().values()) * spec.decoder.layers
    # The last layer computes keys and values of all rows, the rest of it for one.
    kv = 2 * spec.decoder.width * spec.decoder.kv_width
    products = rows * (weights / spec.decoder.layers * (spec.decoder.layers - 1) + kv + spec.decoder.width**2)
    prefill_limit, step_limit = products / peak * 1e3, uniform(spec, 4) / bandwidth * 1e3
    median = None if step is None else statistics.median(step)
    return TargetShare(
        kernel=name,
        layers=spec.decoder.layers,
        prefill_ms=round(statistics.median(prefill), 2),
        best_prefill_ms=round(min(prefill), 2),
        prefill_share=round(prefill_limit / statistics.median(prefill), 3),
        best_prefill_share=round(prefill_limit / min(prefill), 3),
        peak_products_per_s=peak,
        step_ms=median and round(median, 2),
        best_step_ms=None if step is None else round(min(step), 2),
        step_share=median and round(step_limit / median, 3),
        best_step_share=None if step is None else round(step_limit / min(step), 3),
    )


def act(artifact: Path, target: str, rounds: int) -> TargetAction:
    """Whole actions of the demo policy in turns with its reference and eager transformers; of this process's torch."""
    from PIL import Image

    import edge_vla
    from edge_vla.bench import peers
    from edge_vla.demo import BASE

    image, instruction = Image.new("RGB", (224, 224), (90, 120, 60)), "move to the red block"
    name = f"native@{target}"
    ours = edge_vla.load(artifact, device="cpu", kernel=name, vision=name)
    reference, eager = edge_vla.load(BASE, device="cpu"), peers.load("hf-bf16", BASE, device="cpu")
    stages: Stages = {
        (name, "action"): (lambda: ours.act(image, instruction), 8),
        ("reference", "action"): (lambda: reference.act(image, instruction), 2),
        ("eager", "action"): (lambda: eager.act(image, instruction), 2),
    }
    medians = {system: statistics.median(taken) for (system, _), taken in in_turns(stages, rounds).items()}
    return TargetAction(
        kernel=name,
        torch_may_use=dict(MASKS.get(target, {})),
        action_ms=round(medians[name], 2),
        reference_ms=round(medians["reference"], 2),
        eager_ms=round(medians["eager"], 2),
        times_reference=round(medians["reference"] / medians[name], 2),
        times_eager=round(medians["eager"] / medians[name], 2),
    )


def actions(artifact: Path, targets: Sequence[Target], rounds: int) -> list[TargetAction]:
    """`act` in a process of its own for each target."""
    made = []
    for target in targets:
        words = [sys.executable, "-m", "benchmarks.cpu.targets", "--demo", str(artifact), "--act", target.name]
        environment = {**study.child_environment(), **MASKS.get(target.name, {})}
        done = subprocess.run(
            [*words, "--rounds", str(rounds)], env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        made.append(TargetAction(**found))
    return made


def bounds(result_shares: Sequence[TargetShare], result_actions: Sequence[TargetAction]) -> list[study.Target]:
    """What the engine set out to reach."""
    made = []
    for share in result_shares:
        made.append(study.Target(f"{share.kernel}: prefill, share of peak", share.prefill_share, "at least", 0.75))
        if share.step_share is not None:
            least = 0.70 if share.kernel.endswith("avx2") else 0.75
            made.append(study.Target(f"{share.kernel}: step, share of reading", share.step_share, "at least", least))
    for action in result_actions:
        made.append(study.Target(f"{action.kernel}: times eager", action.times_eager, "at least", 4.0))
        made.append(study.Target(f"{action.kernel}: times the reference", action.times_reference, "at least", 8.0))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu.targets", description=__doc__)
    parser.add_argument("--targets", nargs="*", default=[one.name for one in runnable() if one != SCALAR])
    parser.add_argument("--layers", type=int, default=4, help="of 7B shapes; their weights must exceed the caches")
    parser.add_argument("--rows", type=int, default=288, help="of the prefill")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--demo", type=Path, metavar="ARTIFACT", help="of the demo policy; without it no actions")
    parser.add_argument("--act", metavar="TARGET", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="result file")
    given = parser.parse_args()
    if given.act:
        sys.stdout.write(json.dumps(dataclasses.asdict(act(given.demo, given.act, given.rounds))) + "\n")
        return
    targets = [named(name) for name in given.targets]
    found, bandwidth = shares(targets, given.layers, given.rows, given.rounds) if given.layers else ([], reading())
    acted = actions(given.demo, targets, given.rounds) if given.demo else []
    result = TargetsResult("random:openvla-7b", given.rows, bandwidth, found, acted, bounds(found, acted))
    for target in result.targets:
        LOG.info("%s %.3f (at least %.2f)", target.name, target.measured, target.bound)
    if given.out:
        study.write_result(given.out, result)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    study.run(main)
