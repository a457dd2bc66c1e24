"""The int4 decoder beside llama.cpp, and one int4 product beside OpenVINO and ONNX Runtime: in turns, in one run.

    python -m benchmarks.cpu.peers --kernel native@avx512-bf16 --kernel native/int8@avx2 \\
        --llamacpp native=PYTHON --llamacpp avx2=PYTHON --linears PYTHON --out benchmarks/results/cpu-peers.json

Shapes are Llama-2-7B's, weights random: a prefill of 288 rows and steps of one, on all threads; the product is that of
gate or up, on one thread. Each decoder has `--layers` of 32 layers and its times are multiplied up; llama.cpp's
vocabulary is cut to 512 rows, about what our head of action bins costs. A PYTHON of `--llamacpp` has llama-cpp-python
and gguf, built with the flags that its name says; that of `--linears` has openvino, onnxruntime and onnx.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch

from benchmarks import study
from benchmarks.cpu.decoders import BF16, CPU, Packed, packed_decoder
from benchmarks.cpu.engine import in_turns
from benchmarks.cpu.linears import LinearPeers, Weight, fastest, pairs, relative_error
from benchmarks.cpu.llamacpp import LlamaCpp, LlamaCppFacts
from benchmarks.cpu.results import LLAMA_CPP, CpuPeersResult, DecoderTimes, ProductTimes
from edge_vla.device import limits
from edge_vla.processor import features
from edge_vla.quant import PackedWeight, Scheme
from edge_vla.runtime.cpu.native.gemm import NativeGemm
from edge_vla.runtime.cpu.native.library import library, wanted
from edge_vla.runtime.cpu.native.structs import Int8Inputs
from edge_vla.runtime.cpu.native.targets import split
from edge_vla.runtime.kernels import NATIVE_INT8
from edge_vla.spec import OPENVLA_7B, PolicySpec

LOG: Final = logging.getLogger("benchmarks.cpu.peers")
ROWS: Final = (1, 7, 288)  # of the product: a step, a verified draft, a prefill
GROUP: Final = 128
VOCABULARY: Final = 512

Named = Mapping[str, str]


@dataclass(frozen=True)
class Settings:
    """What one run measures. `llamacpp`: a Python by the name of its build; `linears`: a Python, None: no products."""

    kernels: Sequence[str]
    llamacpp: Named
    linears: str | None
    layers: int = 8
    prompt: int = 288
    dims: int = 7
    rounds: int = 4
    spec: PolicySpec = OPENVLA_7B
    buffer_bytes: int = 2 << 30


def measure(settings: Settings) -> CpuPeersResult:
    """One run: the machine's limits, the decoders in turns, the products in turns, the limits again."""
    text_rows = settings.prompt - settings.spec.patches
    ceilings = limits.measure(settings.spec, CPU, text_rows, settings.buffer_bytes)
    decoders, facts = _decoders(settings)
    products, versions = _products(settings) if settings.linears else ([], {})
    return CpuPeersResult(
        model="Llama-2-7B's shapes" if settings.spec is OPENVLA_7B else "toy shapes",
        prompt_rows=settings.prompt,
        steps=settings.dims - 1,
        layers=settings.spec.decoder.layers,
        layers_measured=settings.layers,
        instructions=sorted(features()),
        ceilings=ceilings.or_better(limits.measure(settings.spec, CPU, text_rows, settings.buffer_bytes)),
        decoders=decoders,
        llama_cpp=facts,
        product=f"{settings.spec.decoder.mlp_width} x {settings.spec.decoder.width}, groups of {GROUP}, one thread",
        products=products,
        versions=versions,
    )


def _decoders(settings: Settings) -> tuple[list[DecoderTimes], dict[str, LlamaCppFacts]]:
    """Each kernel's decoder and each llama.cpp, prefill and step; and what each llama.cpp says of itself."""
    stages: dict[tuple[str, str], tuple[Callable[[], object], int]] = {}
    facts = dict[str, LlamaCppFacts]()
    cut = replace(settings.spec.decoder, layers=settings.layers, vocab_rows=VOCABULARY)
    with ExitStack() as stack:
        for kernel in settings.kernels:
            made, _, names = packed_decoder(settings.spec, 4, settings.layers, kernel)
            ours = Packed(made, settings.prompt, settings.dims)
            name = next(iter(names.values()))
            stages |= {(name, "prefill"): (ours.prefill, 1), (name, "step"): (ours.step, settings.dims - 1)}
        for build, python in settings.llamacpp.items():
            peer = stack.enter_context(LlamaCpp(python, cut, settings.prompt, torch.get_num_threads()))
            name = f"{LLAMA_CPP} {build}"
            facts[name] = peer.facts
            stages |= {(name, "prefill"): (peer.prefill, 1), (name, "step"): (peer.step, settings.dims - 1)}
        times = in_turns(stages, settings.rounds)
    scale = settings.spec.decoder.layers / settings.layers
    return [_decoder(name, times, scale, settings.dims) for name in dict.fromkeys(name for name, _ in times)], facts


def _decoder(name: str, times: Mapping[tuple[str, str], Sequence[float]], scale: float, dims: int) -> DecoderTimes:
    prefill, step = (times[name, stage] for stage in ("prefill", "step"))
    middle = [statistics.median(taken) * scale for taken in (prefill, step)]
    return DecoderTimes(
        name=name,
        prefill_ms=round(middle[0], 1),
        step_ms=round(middle[1], 2),
        best_prefill_ms=round(min(prefill) * scale, 1),
        best_step_ms=round(min(step) * scale, 2),
        decoder_ms=round(middle[0] + (dims - 1) * middle[1], 1),
    )


def _products(settings: Settings) -> tuple[list[ProductTimes], dict[str, str]]:
    """One product of every system at each number of rows, in turns; and the libraries' versions."""
    assert settings.linears, "a Python for the libraries"
    spec = settings.spec.decoder
    weight = Weight(spec.mlp_width, spec.width, GROUP)
    asked = {"n": weight.n, "k": weight.k, "group": weight.group, "threads": 1}
    systems: dict[str, Callable[[int], tuple[float, float]]] = {
        kernel: _ours(kernel, weight) for kernel in settings.kernels
    }
    versions = dict[str, str]()
    with ExitStack() as stack:
        peers = stack.enter_context(LinearPeers(settings.linears, asked))
        for name, version in peers.systems.items():
            systems[name] = lambda rows, name=name: peers.measure(name, rows)  # type: ignore[misc]
            versions[name] = version
        taken: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for number in range(settings.rounds):
            for name in list(systems) if number % 2 == 0 else list(systems)[::-1]:
                for rows in ROWS:
                    taken.setdefault((name, rows), []).append(systems[name](rows))
    return [
        ProductTimes(name, rows, round(statistics.median(ms for ms, _ in found), 3), float(f"{found[0][1]:.3g}"))
        for (name, rows), found in taken.items()
    ], versions


def _ours(kernel: str, weight: Weight) -> Callable[[int], tuple[float, float]]:
    """Milliseconds and relative error of our product by this kernel; a prefill's rows are rounded by `native/int8`."""
    name, target = split(kernel)
    nibbles = torch.from_numpy(pairs((weight.codes + 8).astype(np.uint8)))
    packed = PackedWeight(
        Scheme.INT4, (weight.n, weight.k), weight.group, nibbles, torch.from_numpy(weight.scales).half()
    )
    rounded = Int8Inputs.IN_PREFILL if name == NATIVE_INT8 else Int8Inputs.NEVER
    plain = NativeGemm(packed, library(wanted(target)))
    prefill = NativeGemm(packed, library(wanted(target)), int8_inputs=rounded) if rounded else plain
    dense = weight.dense.T.astype(np.float64)

    def measured(rows: int) -> tuple[float, float]:
        x = torch.from_numpy(np.random.default_rng(1).standard_normal((rows, weight.k)).astype(np.float32)).to(BF16)
        milliseconds, got = fastest(partial(prefill if rows > max(ROWS[:-1]) else plain, x))
        return milliseconds, relative_error(got.double().numpy(), x.double().numpy() @ dense)

    return measured


def _pairs(words: Sequence[str]) -> dict[str, str]:
    return {name: path for name, _, path in (word.partition("=") for word in words)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu.peers", description=__doc__)
    parser.add_argument("--kernel", action="append", required=True, help="of ours; repeat: native@avx2, native/int8@…")
    parser.add_argument("--llamacpp", action="append", default=[], metavar="NAME=PYTHON", help="a build; repeat")
    parser.add_argument("--linears", metavar="PYTHON", help="with openvino, onnxruntime and onnx")
    parser.add_argument("--layers", type=int, default=8, help="measured of 32")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True, help="result file")
    given = parser.parse_args()
    settings = Settings(given.kernel, _pairs(given.llamacpp), given.linears, given.layers, rounds=given.rounds)
    study.write_result(given.out, measure(settings))


if __name__ == "__main__":
    study.run(main)
