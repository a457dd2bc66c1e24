"""Decoders of random weights whose passes can be timed: ours, and transformers' eager bf16 layers.

All buffers exist before a pass, which is a prefill of `prompt` rows, a step of one row after it, or six rows at once,
as a draft is verified. Speed does not depend on the weights' values. Knows no clock.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import torch

from edge_vla.artifact import Linear
from edge_vla.bench.peers.llama import llama_config
from edge_vla.bench.peers.packages import required
from edge_vla.quant import PackedWeight, Scheme, plan
from edge_vla.runtime.cpu.assemble import Assembly, CpuDecoder
from edge_vla.runtime.padding import padded
from edge_vla.spec import PolicySpec

LOG: Final = logging.getLogger("benchmarks.cpu.decoders")
CPU: Final = torch.device("cpu")
BF16: Final = torch.bfloat16


def random_weight(shape: tuple[int, int], bits: int, generator: torch.Generator) -> PackedWeight:
    """Random codes, all scales equal."""
    rows, columns = shape
    scheme, group = plan(bits, columns, None, "a random weight")
    if scheme is Scheme.BF16:
        codes = torch.randn(shape, generator=generator).bfloat16() * 0.02
        return PackedWeight(scheme, shape, None, codes, None)
    if scheme is Scheme.INT8:
        codes = torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator)
        return PackedWeight(scheme, shape, None, codes, torch.full((rows,), 2.0**-12, dtype=torch.half))
    assert group is not None, "4 bits have a group"
    codes = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, generator=generator)
    return PackedWeight(scheme, shape, group, codes, torch.full((rows, columns // group), 2.0**-8, dtype=torch.half))


def packed_decoder(spec: PolicySpec, bits: int, layers: int, kernel: str) -> tuple[CpuDecoder, int, dict[str, str]]:
    """A decoder of so many layers, the bytes of its weights, and its kernels."""
    generator = torch.Generator().manual_seed(0)
    shapes = spec.decoder.linears()
    plans = {name: plan(bits, columns, None, name) for name, (_, columns) in shapes.items()}
    formats = {name: Linear(scheme, shapes[name], group, 0.0) for name, (scheme, group) in plans.items()}
    assembly, made, size = Assembly(spec, BF16, CPU, [formats], kernel), [], 0
    ones = torch.ones(spec.decoder.width, dtype=BF16)
    for index in range(layers):
        linears = {name: random_weight(shape, bits, generator) for name, shape in shapes.items()}
        size += sum(weight.bytes for weight in linears.values())
        norms = {"input_layernorm.weight": ones, "post_attention_layernorm.weight": ones}
        made.append(assembly.layer(index, linears, norms))
        LOG.info("layer %d of %d", index + 1, layers)
    return assembly.decoder(made, ones), size, assembly.kernels()


class Packed:
    """One action's prefill and steps on our decoder."""

    def __init__(self, decoder: CpuDecoder, prompt: int, dims: int) -> None:
        self.decoder, self.prompt = decoder, prompt
        whole, reach = padded(prompt), padded(prompt + dims)
        self.cache: Any = decoder.cache(reach)
        self.rows = torch.randn(1, whole, decoder.spec.width).to(BF16)
        self.first: Any = self.cache.first(whole)

    def prefill(self) -> None:
        self.decoder.rows(self.rows, 0, self.first, slice(self.prompt - 1, self.prompt))

    def step(self) -> None:
        self.decoder.rows(self.rows[:, :1], self.prompt, self.cache)

    def verify(self) -> None:
        """Six rows at once, as a draft is verified."""
        self.decoder.rows(self.rows[:, :6], self.prompt, self.cache)


class Eager:
    """The same on so many layers of transformers' Llama: bf16, its own cache and attention."""

    def __init__(self, spec: PolicySpec, layers: int, prompt: int) -> None:
        transformers = required("transformers")
        config = llama_config(spec.decoder, "sdpa")
        config.num_hidden_layers, config.vocab_size = layers, 8  # the vocabulary is not used
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
