"""Every target of the C engine on this machine, beside what its own instructions and the memory can do.

    python -m benchmarks.cpu.targets --demo ARTIFACT --out benchmarks/results/cpu-targets.json

One product by random weights, one thread, processor time, the best of many turns: so a busy machine counts nearly
alike. A product of one row is compared with reading the weights' bytes (6 weights, too many for the near caches), one
of 288 rows with the most products that the target's registers do (`peaks.c`). Then whole actions of the demo policy in
turns with its bf16 reference and transformers' eager bf16, by wall time, in a process whose torch may use no more
instructions than the target has.
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
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import torch

from benchmarks import study
from benchmarks.cpu.decoders import random_weight
from benchmarks.cpu.engine import Stages, in_turns
from benchmarks.cpu.results import TargetAction, TargetShare, TargetsResult
from edge_vla import typed_json
from edge_vla.quant import PackedWeight, Scheme
from edge_vla.runtime.compiled import compiled
from edge_vla.runtime.cpu.native.gemm import NativeGemm
from edge_vla.runtime.cpu.native.library import require_library
from edge_vla.runtime.cpu.native.structs import Int8Inputs
from edge_vla.runtime.cpu.native.targets import HERE, SCALAR, Target, fingerprint, named, runnable

LOG: Final = logging.getLogger("benchmarks.cpu.targets")
PEAKS: Final = Path(__file__).with_name("peaks.c")
LOOPS: Final = 100_000  # a millisecond: between two interruptions
N, K, WEIGHTS = 4096, 4096, 6  # the smallest linear of Llama-2-7B
KINDS: Final = {4: (Int8Inputs.NEVER, Int8Inputs.ALWAYS), 8: (Int8Inputs.NEVER,), 16: (Int8Inputs.NEVER,)}  # by bits
AVX2_ONLY: Final = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
MASKS: Final[Mapping[str, Mapping[str, str]]] = {  # what torch may use where the target has no more
    "avx2": AVX2_ONLY,
    "avx2-vnni": {**AVX2_ONLY, "ONEDNN_MAX_CPU_ISA": "AVX2_VNNI"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "avx512-vnni": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
}


def peaks(target: Target) -> dict[str, float]:
    """Products a second of floats, bytes and pairs of bf16: processor time of one thread, the best of sixty."""
    flags = ["-O2", "-std=gnu11", "-w", "-shared", "-fPIC", *target.flags, f"-D{target.define}", f"-I{HERE}"]
    about = PEAKS.read_text(encoding="utf-8") + fingerprint(target)
    loaded = ctypes.CDLL(str(compiled(f"peaks-{target.name}", [*flags, str(PEAKS)], about)))
    rates = {}
    for name in ("float", "byte", "bf16"):
        function = getattr(loaded, f"{name}_products")
        function.restype = ctypes.c_int64
        products = function(ctypes.c_int64(LOOPS))
        rates[name] = products / fastest(partial(function, ctypes.c_int64(LOOPS)), 60)
    return rates


def fastest(call: Callable[[], object], turns: int) -> float:
    """Seconds of this thread's processor time."""
    best = float("inf")
    for _ in range(turns):
        began = time.thread_time()
        call()
        best = min(best, time.thread_time() - began)
    return best


def each(products: Sequence[NativeGemm], x: torch.Tensor) -> None:
    for product in products:
        product(x)


def product_peak(packed: PackedWeight, int8: Int8Inputs, rates: Mapping[str, float]) -> float:
    """Of the instructions that a product is made of."""
    if int8 != Int8Inputs.NEVER:
        return rates["byte"]
    if packed.scheme is Scheme.BF16:
        return rates["bf16"] or rates["float"]
    return rates["byte"] / 2


def shares(targets: Sequence[Target], rows: int, rounds: int) -> list[TargetShare]:
    """Both products of every format on every target, in turns."""
    generator, rates = torch.Generator().manual_seed(0), {target.name: peaks(target) for target in targets}
    best = dict[tuple[str, str, int], float]()
    limits = dict[tuple[str, str, int], float]()
    x = torch.randn(rows, K, generator=generator).bfloat16()
    for bits, kinds in KINDS.items():
        packed = [random_weight((N, K), bits, generator) for _ in range(WEIGHTS)]
        read_s = reading(packed)
        for target, kind in [(target, kind) for target in targets for kind in kinds]:
            name = f"native{'/int8' if kind else ''}@{target.name}"
            products = [NativeGemm(one, require_library(target), int8_inputs=kind) for one in packed]
            one_row, all_rows = (name, packed[0].scheme.value, 1), (name, packed[0].scheme.value, rows)
            best[one_row] = fastest(partial(each, products, x[:1]), rounds)
            best[all_rows] = fastest(partial(products[0], x), rounds)
            read_s = min(read_s, reading(packed))
            again = peaks(target)
            rates[target.name] = {unit: max(rate, again[unit]) for unit, rate in rates[target.name].items()}
            limits[one_row] = read_s
            limits[all_rows] = rows * N * K / product_peak(packed[0], kind, rates[target.name])
            LOG.info("%s %s: %s", name, bits, {key[2]: limits[key] / best[key] for key in (one_row, all_rows)})
    made = []
    for key, taken in best.items():
        kernel, scheme, count = key
        limit = "reading" if count == 1 else "peak"
        made.append(TargetShare(kernel, scheme, count, limit, round(taken * 1e6), round(limits[key] / taken, 3)))
    return made


def reading(packed: Sequence[PackedWeight]) -> float:
    """Seconds to read the weights' codes and scales, by summing them."""
    whole = [one.codes.flatten().view(torch.int64) for one in packed]
    scales = [one.scales.flatten().view(torch.int64) for one in packed if one.scales is not None]
    return fastest(lambda: [part.sum() for part in (*whole, *scales)], 15)


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
        made.append(typed_json.from_json(TargetAction, json.loads(done.stdout.splitlines()[-1])))
    return made


def bounds(result_shares: Sequence[TargetShare], result_actions: Sequence[TargetAction]) -> list[study.Target]:
    """What the engine set out to reach."""
    made = []
    for share in result_shares:
        least = 0.70 if share.rows == 1 and share.kernel.endswith("avx2") else 0.75
        name = f"{share.kernel}, {share.format}, {share.rows} rows: share of {share.limit}"
        made.append(study.Target(name, share.share, "at least", least))
    for action in result_actions:
        made.append(study.Target(f"{action.kernel}: times eager", action.times_eager, "at least", 4.0))
        made.append(study.Target(f"{action.kernel}: times the reference", action.times_reference, "at least", 8.0))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu.targets", description=__doc__)
    parser.add_argument("--targets", nargs="*", default=[one.name for one in runnable() if one != SCALAR])
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
    torch.set_num_threads(1)
    found = shares(targets, given.rows, given.rounds)
    acted = actions(given.demo, targets, given.rounds) if given.demo else []
    result = TargetsResult(N, K, found, acted, bounds(found, acted))
    for target in result.targets:
        LOG.info("%s %.3f (at least %.2f)", target.name, target.measured, target.bound)
    if given.out:
        study.write_result(given.out, result)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    study.run(main)
