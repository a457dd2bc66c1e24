"""The decoder at the true shapes of a network, random weights, against the machine and against eager transformers.

    python -m edge_vla.benchmarks.engine --model random:openvla-7b --bits 4 --out RESULT.json

One process measures, in this order: read bandwidth (best sums over 2 GB) and the bf16 product's rate; then prefill and
decode step of the packed decoder and of transformers' eager bf16 layers, in turns. transformers gets fewer layers than
the network has (`--reference-layers`), because 13 GB of bf16 leave no room beside it: its times are multiplied up,
and the result says by how much. Speed does not depend on what the weights are.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from edge_vla.benchmarks import limits
from edge_vla.benchmarks.environment import environment, peak_memory_bytes
from edge_vla.benchmarks.peers.llama import llama_config
from edge_vla.benchmarks.peers.packages import needed
from edge_vla.errors import EdgeVLAError
from edge_vla.files import write_whole
from edge_vla.model import Cache
from edge_vla.quant import PackedWeight, Scheme, plan
from edge_vla.runtime.assemble import Assembly
from edge_vla.runtime.engine import FusedDecoder
from edge_vla.runtime.kernels import AUTO
from edge_vla.spec import OPENVLA_7B, TINY, PolicySpec

LOG: Final = logging.getLogger("edge_vla.benchmarks.engine")
MODELS: Final = {"random:openvla-7b": OPENVLA_7B, "random:openvla-tiny": TINY}
BUFFER: Final = 2 << 30  # bytes that are summed
PAD_TO: Final = 16
CPU: Final = torch.device("cpu")
BF16: Final = torch.bfloat16


def random_weight(shape: tuple[int, int], bits: int, generator: torch.Generator) -> PackedWeight:
    """Codes from a generator, scales of one size."""
    outer, inner = shape
    scheme, group = plan(bits, inner, None, "a random weight")
    if scheme is Scheme.BF16:
        codes = torch.randn(shape, generator=generator).bfloat16() * 0.02
        return PackedWeight(scheme, shape, None, codes, None)
    if scheme is Scheme.INT8:
        codes = torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator)
        return PackedWeight(scheme, shape, None, codes, torch.full((outer,), 2.0**-12, dtype=torch.half))
    assert group is not None, "4 bits have a group"
    codes = torch.randint(0, 256, (outer, inner // 2), dtype=torch.uint8, generator=generator)
    return PackedWeight(scheme, shape, group, codes, torch.full((outer, inner // group), 2.0**-8, dtype=torch.half))


def packed_decoder(spec: PolicySpec, bits: int, layers: int, kernel: str) -> tuple[FusedDecoder, int, dict[str, str]]:
    """A decoder of so many layers, bytes of its weights, and its kernels."""
    generator = torch.Generator().manual_seed(0)
    assembly, made, size = Assembly(spec, BF16, CPU, kernel), [], 0
    ones = torch.ones(spec.decoder.width, dtype=BF16)
    for index in range(layers):
        linears = {name: random_weight(shape, bits, generator) for name, shape in spec.decoder.linears().items()}
        size += sum(weight.bytes for weight in linears.values())
        norms = {"input_layernorm.weight": ones, "post_attention_layernorm.weight": ones}
        made.append(assembly.layer(index, linears, norms))
        LOG.info("layer %d of %d", index + 1, layers)
    return FusedDecoder(spec.decoder, made, assembly.norm(ones)), size, assembly.kernels()


class Packed:
    """One action's prefill and steps on our decoder, all buffers made before."""

    def __init__(self, decoder: FusedDecoder, layers: int, prompt: int, dims: int) -> None:
        self.decoder, self.prompt = decoder, prompt
        padded, reach = (-(-rows // PAD_TO) * PAD_TO for rows in (prompt, prompt + dims))
        width, heads = decoder.spec.width, decoder.spec.kv_heads
        shape = (layers, 1, heads, reach, decoder.spec.head_width)
        self.cache = Cache(torch.zeros(shape, dtype=BF16), torch.zeros(shape, dtype=BF16))
        self.rows = torch.randn(1, padded, width).to(BF16)
        self.first = self.cache.first(padded)

    def prefill(self) -> None:
        self.decoder.rows(self.rows, 0, self.first, slice(self.prompt - 1, self.prompt))

    def step(self) -> None:
        self.decoder.rows(self.rows[:, :1], self.prompt, self.cache)

    def verify(self) -> None:
        """Six rows at once, as a draft is verified."""
        self.decoder.rows(self.rows[:, :6], self.prompt, self.cache)


class Eager:
    """The same on transformers' Llama, bf16, its own cache and attention, in so many layers."""

    def __init__(self, spec: PolicySpec, layers: int, prompt: int) -> None:
        transformers = needed("transformers")
        config = llama_config(spec.decoder, "sdpa")
        config.num_hidden_layers, config.vocab_size = layers, 8  # rows of the vocabulary are not read
        torch.manual_seed(0)
        default = torch.get_default_dtype()
        torch.set_default_dtype(BF16)
        try:
            self.model = transformers.LlamaModel(config).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(default)
        self.rows = torch.randn(1, prompt, spec.decoder.width).to(BF16)
        self.cache: Any = None

    def prefill(self) -> None:
        self.cache = self.model(inputs_embeds=self.rows, use_cache=True).past_key_values

    def step(self) -> None:
        self.model(inputs_embeds=self.rows[:, :1], past_key_values=self.cache, use_cache=True)


def in_turns(
    stages: Mapping[str, tuple[Callable[[], object], int]], rounds: int
) -> dict[str, list[float]]:  # fmt: skip
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
    buffer: int = BUFFER,
) -> dict[str, Any]:  # fmt: skip
    """The result document but for its head. Milliseconds are of the whole network: fewer layers are multiplied up."""
    ceilings = limits.measure(spec, CPU, prompt - spec.patches, buffer)
    LOG.info("reads %.1f GB/s, bf16 %.0f GFLOP/s", ceilings.read_bytes_per_s / 1e9, ceilings.gemm_flops["bf16"] / 1e9)
    decoder, size, kernels = packed_decoder(spec, bits, layers, kernel)
    ours = Packed(decoder, layers, prompt, dims)
    stages: dict[str, tuple[Callable[[], object], int]] = {
        "prefill": (ours.prefill, 1), "step": (ours.step, 6), "verify": (ours.verify, 3),
    }  # fmt: skip
    if reference_layers:
        eager = Eager(spec, reference_layers, prompt)
        stages |= {"eager prefill": (eager.prefill, 1), "eager step": (eager.step, 6)}
    taken = in_turns(stages, rounds)
    whole = spec.decoder.layers
    scale = {name: whole / (reference_layers if name.startswith("eager") else layers) for name in stages}
    best = {name: min(taken[name]) * scale[name] for name in stages}
    middle = {name: statistics.median(taken[name]) * scale[name] for name in stages}
    passes = {cost.name: cost for cost in limits.costs(spec, size * whole // layers, prompt - spec.patches, dims)}
    read_ms, _ = ceilings.limit_ms(_once(passes["one step"]))
    _, compute_ms = ceilings.limit_ms(passes["prefill"])
    steps = dims - 1
    result: dict[str, Any] = {
        "kernels": kernels,
        "layers measured": {"packed": layers, "eager": reference_layers, "of": whole},
        "prompt rows": prompt,
        "ceilings": ceilings.to_json(),
        "milliseconds, median": {name: round(value, 2) for name, value in middle.items()},
        "milliseconds, best": {name: round(value, 2) for name, value in best.items()},
        "predicted ms": {"step, bytes alone": round(read_ms, 2), "prefill, arithmetic alone": round(compute_ms, 2)},
        "step, share of read bandwidth": _shares(read_ms, middle["step"], best["step"]),
        "prefill, share of bf16 rate": _shares(compute_ms, middle["prefill"], best["prefill"]),
        "peak_bytes": peak_memory_bytes(),
    }
    if reference_layers:
        decoder_ms = {
            "packed": middle["prefill"] + steps * middle["step"],
            "packed, a draft that is right": middle["prefill"] + middle["verify"],
            "eager": middle["eager prefill"] + steps * middle["eager step"],
        }
        result["decoder part of an action, ms"] = {name: round(value, 1) for name, value in decoder_ms.items()}
        result["times faster than eager"] = {
            "step": round(middle["eager step"] / middle["step"], 3),
            "prefill": round(middle["eager prefill"] / middle["prefill"], 3),
            "decoder part": round(decoder_ms["eager"] / decoder_ms["packed"], 3),
            "decoder part, a draft that is right": round(
                decoder_ms["eager"] / decoder_ms["packed, a draft that is right"], 3
            ),
        }
    return result


def _once(cost: limits.Cost) -> limits.Cost:
    return limits.Cost(cost.name, cost.stage, cost.bytes, cost.operations, 1, cost.arithmetic)


def _shares(limit: float, middle: float, best: float) -> dict[str, float]:
    return {"median": round(limit / middle, 4), "best": round(limit / best, 4)}


def vision_ms(spec: PolicySpec, rounds: int) -> dict[str, float]:
    """Towers and projector in bf16, random weights: as we run them, and as the reference does."""
    from edge_vla.runtime.vision import TorchVision, with_flat_patches

    torch.manual_seed(0)
    with torch.inference_mode():
        reference, ours = (TorchVision(spec).to(BF16).eval() for _ in range(2))
        pixels = torch.randn(1, 3 * len(spec.towers), spec.image_size, spec.image_size)
        fast = with_flat_patches(ours)
        stages: dict[str, tuple[Callable[[], Tensor], int]] = {
            "vision": (lambda: fast(pixels), 1),
            "eager vision": (lambda: reference(pixels), 1),
        }
        return {name: round(statistics.median(taken), 1) for name, taken in in_turns(stages, rounds).items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m edge_vla.benchmarks.engine", description=__doc__)
    parser.add_argument("--model", choices=list(MODELS), default="random:openvla-7b")
    parser.add_argument("--bits", type=int, choices=(4, 8, 16), default=4)
    parser.add_argument("--kernel", default=AUTO)
    parser.add_argument("--layers", type=int, help="of the packed decoder; all by default")
    parser.add_argument("--reference-layers", type=int, default=6, help="0: without transformers")
    parser.add_argument("--prompt", type=int, help="rows of a prefill, image and text; 27 of text by default")
    parser.add_argument("--dims", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--vision", action="store_true", help="the towers too")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if given.threads:
        torch.set_num_threads(given.threads)
    spec = MODELS[given.model]
    result = compare(
        spec, given.bits, given.kernel, given.layers or spec.decoder.layers, given.reference_layers,
        given.prompt or spec.patches + 27, given.dims, given.rounds,
    )  # fmt: skip
    if given.vision:
        result["vision, ms, median"] = vision_ms(spec, given.rounds)
    document = {"version": 1, "kind": "engine", "model": given.model, "bits": given.bits}
    document |= {"environment": environment(), **result}
    write_whole(given.out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"error: {error}")
