"""The decoder at the true shapes of a network, random weights, against the machine and against other engines.

    python -m benchmarks.cpu.engine --model random:openvla-7b --bits 4 --prompt 288 --vision \\
        --llamacpp PYTHON --out RESULT.json

One process measures, in this order: read bandwidth (best sums over 2 GB) and the rate of products; then prefill and
decode step of the packed decoder, of transformers' eager bf16 layers, and with `--llamacpp` of llama.cpp in a child of
its own, in turns; the two rates again, of which the better counts; then the towers. transformers gets fewer layers
than the network has (`--reference-layers`), because 13 GB of bf16 leave no room beside it: its times are multiplied up,
and the result says by how much. What was to be reached stands beside what was, in `claims`. Speed does not depend on
what the weights are.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.cpu.decoders import BF16, CPU, Eager, Packed, packed_decoder
from benchmarks.cpu.llamacpp import LlamaCpp
from edge_vla.bench.provenance import environment, peak_memory_bytes
from edge_vla.device import limits
from edge_vla.errors import EdgeVLAError
from edge_vla.files import write_whole
from edge_vla.runtime.kernels import AUTO
from edge_vla.spec import OPENVLA_7B, TINY, PolicySpec

LOG: Final = logging.getLogger("benchmarks.cpu.engine")
MODELS: Final = {"random:openvla-7b": OPENVLA_7B, "random:openvla-tiny": TINY}
BUFFER: Final = 2 << 30  # bytes that are summed
OURS: Final = "packed"
EAGER: Final = "eager"
LLAMA_CPP: Final = "llama.cpp"

Stages = Mapping[str, tuple[Callable[[], object], int]]  # by name: a call, and how often in a row


def in_turns(stages: Stages, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each, `times` calls in a row a round, forward and back; the first of a row is thrown away."""
    taken: dict[str, list[float]] = {name: [] for name in stages}
    names = list(stages)
    with torch.inference_mode():
        for number in range(rounds):
            for name in names if number % 2 == 0 else names[::-1]:
                call, times = stages[name]
                for turn in range(times + 1):
                    began = time.perf_counter()
                    call()
                    if turn:
                        taken[name].append((time.perf_counter() - began) * 1e3)
            LOG.info("round %d of %d: %s", number + 1, rounds, {name: round(min(ms), 1) for name, ms in taken.items()})
    return taken


def compare(
    spec: PolicySpec, bits: int, kernel: str, layers: int, reference_layers: int, prompt: int, dims: int, rounds: int,
    buffer: int = BUFFER, llamacpp: str | None = None, vision: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """The result document but for its head. Milliseconds are of the whole network: fewer layers are multiplied up."""
    ceilings = limits.measure(spec, CPU, prompt - spec.patches, buffer)
    LOG.info("reads %.1f GB/s, bf16 %.0f GFLOP/s", ceilings.read_bytes_per_s / 1e9, ceilings.gemm_flops["bf16"] / 1e9)
    decoder, size, kernels = packed_decoder(spec, bits, layers, kernel)
    ours = Packed(decoder, prompt, dims)
    stages: dict[str, tuple[Callable[[], object], int]] = {
        "prefill": (ours.prefill, 1), "step": (ours.step, dims - 1), "verify": (ours.verify, 3),
    }  # fmt: skip
    if reference_layers:
        eager = Eager(spec, reference_layers, prompt)
        stages |= {"eager prefill": (eager.prefill, 1), "eager step": (eager.step, dims - 1)}
    threads = torch.get_num_threads()
    with LlamaCpp(llamacpp, spec.decoder, prompt, threads) if llamacpp else nullcontext() as peer:
        if peer is not None:
            stages |= {"llama.cpp prefill": (peer.prefill, 1), "llama.cpp step": (peer.step, dims - 1)}
        taken = in_turns(stages, rounds)
    ceilings = ceilings.or_better(limits.measure(spec, CPU, prompt - spec.patches, buffer))
    whole = spec.decoder.layers
    measured = {OURS: layers, EAGER: reference_layers, LLAMA_CPP: whole}
    scale = {name: whole / measured[_side(name)] for name in stages}
    best = {name: min(taken[name]) * scale[name] for name in stages}
    middle = {name: statistics.median(taken[name]) * scale[name] for name in stages}
    arithmetic = _arithmetic(kernels)
    passes = {
        cost.name: cost
        for cost in limits.costs(
            spec, size * whole // layers, prompt - spec.patches, dims,
            arithmetic=arithmetic if arithmetic in ceilings.gemm_flops else "bf16",
        )
    }  # fmt: skip
    read_ms, _ = ceilings.limit_ms(_once(passes["one step"]))
    _, compute_ms = ceilings.limit_ms(passes["prefill"])
    result: dict[str, Any] = {
        "kernels": kernels,
        "layers measured": {OURS: layers, EAGER: reference_layers, "of": whole},
        "prompt rows": prompt,
        "ceilings": ceilings.to_json(),
        "milliseconds, median": {name: round(value, 2) for name, value in middle.items()},
        "milliseconds, best": {name: round(value, 2) for name, value in best.items()},
        "predicted ms": {"step, bytes alone": round(read_ms, 2), "prefill, arithmetic alone": round(compute_ms, 2)},
        "step, share of read bandwidth": _shares(read_ms, middle["step"], best["step"]),
        f"prefill, share of {passes['prefill'].arithmetic} rate": _shares(
            compute_ms, middle["prefill"], best["prefill"]
        ),
        "peak_bytes": peak_memory_bytes(),
    }
    if peer is not None:
        result[LLAMA_CPP] = peer.about
    result["decoder part of an action, ms"] = parts = {
        name: round(value, 1) for name, value in _decoder_parts(middle, dims - 1)
    }
    if vision:
        result["vision, ms, median"] = seen = vision_ms(spec, rounds)
        result["whole action, ms"] = {
            OURS: round(seen["vision"] + parts[OURS], 1),
            **({EAGER: round(seen["eager vision"] + parts[EAGER], 1)} if reference_layers else {}),
        }
    for other in (EAGER, LLAMA_CPP):
        if other in parts:
            result[f"times faster than {other}"] = _ratios(result, middle, other)
    result["claims"] = list(claims(result))
    return result


def _side(stage: str) -> str:
    return next((side for side in (EAGER, LLAMA_CPP) if stage.startswith(side)), OURS)


def _arithmetic(kernels: Mapping[str, str]) -> str:
    """What all kernels compute in, as their names say it: int8 where activations are rounded too."""
    found = {kernel.rpartition("/")[2] for kernel in kernels.values()}
    return found.pop() if len(found) == 1 else "bf16"


def _decoder_parts(middle: Mapping[str, float], steps: int) -> Iterator[tuple[str, float]]:
    """A prefill and the steps behind it, in milliseconds, by side."""
    yield OURS, middle["prefill"] + steps * middle["step"]
    yield f"{OURS}, a draft that is right", middle["prefill"] + middle["verify"]
    for side in (EAGER, LLAMA_CPP):
        if f"{side} step" in middle:
            yield side, middle[f"{side} prefill"] + steps * middle[f"{side} step"]


def _ratios(result: Mapping[str, Any], middle: Mapping[str, float], other: str) -> dict[str, float]:
    parts, actions = result["decoder part of an action, ms"], result.get("whole action, ms", {})
    draft = f"{OURS}, a draft that is right"
    found = {
        "step": middle[f"{other} step"] / middle["step"],
        "prefill": middle[f"{other} prefill"] / middle["prefill"],
        "decoder part": parts[other] / parts[OURS],
        "decoder part, a draft that is right": parts[other] / parts[draft],
    }
    if other in actions:
        found["whole action"] = actions[other] / actions[OURS]
    return {name: round(value, 3) for name, value in found.items()}


def claims(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What this engine set out to reach, beside what it did: ratios of medians of this run."""
    wanted = [("step, share of read bandwidth", "median", 0.75)]
    wanted += [(name, "median", 0.75) for name in result if name.startswith("prefill, share of ")]
    wanted += [("times faster than eager", "step", 4.0), ("times faster than eager", "whole action", 1.2)]
    wanted += [("times faster than llama.cpp", "decoder part", 1.0)]
    for group, name, bar in wanted:
        ratio = result.get(group, {}).get(name)
        if ratio is not None:
            what = group if name == "median" else f"{name}, {group}"
            yield {"what": what, "value": ratio, "at least": bar, "holds": ratio >= bar}


def _once(cost: limits.Cost) -> limits.Cost:
    return limits.Cost(cost.name, cost.stage, cost.bytes, cost.operations, 1, cost.arithmetic)


def _shares(limit: float, middle: float, best: float) -> dict[str, float]:
    return {"median": round(limit / middle, 4), "best": round(limit / best, 4)}


def vision_ms(spec: PolicySpec, rounds: int) -> dict[str, float]:
    """Towers and projector in bf16, random weights: as we run them, and as the reference does."""
    from edge_vla.runtime.cpu.native.library import fast
    from edge_vla.runtime.cpu.native.vision import NativeVision
    from edge_vla.runtime.vision import TorchVision, Vision, with_flat_patches

    torch.manual_seed(0)
    with torch.inference_mode():
        reference = TorchVision(spec).to(BF16).eval()
        ours: Vision = (
            NativeVision(spec, reference.state_dict())
            if fast()
            else with_flat_patches(TorchVision(spec).to(BF16).eval())
        )
        pixels = torch.randn(1, 3 * len(spec.towers), spec.image_size, spec.image_size)
        stages: dict[str, tuple[Callable[[], Tensor], int]] = {
            "vision": (lambda: ours(pixels), 1),
            "eager vision": (lambda: reference(pixels), 1),
        }
        return {name: round(statistics.median(taken), 1) for name, taken in in_turns(stages, rounds).items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu.engine", description=__doc__)
    parser.add_argument("--model", choices=list(MODELS), default="random:openvla-7b")
    parser.add_argument("--bits", type=int, choices=(4, 8, 16), default=4)
    parser.add_argument("--kernel", default=AUTO)
    parser.add_argument("--layers", type=int, help="of the packed decoder; all by default")
    parser.add_argument("--reference-layers", type=int, default=6, help="0: without transformers")
    parser.add_argument("--prompt", type=int, help="rows of a prefill, image and text; 27 of text by default")
    parser.add_argument("--dims", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--vision", action="store_true", help="the towers too")
    parser.add_argument("--llamacpp", metavar="PYTHON", help="a Python with llama-cpp-python and gguf")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if given.threads:
        torch.set_num_threads(given.threads)
    spec = MODELS[given.model]
    result = compare(
        spec, given.bits, given.kernel, given.layers or spec.decoder.layers, given.reference_layers,
        given.prompt or spec.patches + 27, given.dims, given.rounds, llamacpp=given.llamacpp, vision=given.vision,
    )  # fmt: skip
    document = {"version": 1, "kind": "engine", "model": given.model, "bits": given.bits}
    document |= {"environment": environment(), **result}
    write_whole(given.out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"error: {error}")
