"""Who is timed by `make bench-gpu`: our engine in several forms, and transformers as its users run it.

Every side maps one preprocessed picture on the host to token ids on the host, for one prompt. Peers get the same
number of tokens, over the whole vocabulary as upstream decodes, and no early stop. Knows engines; knows nothing of
clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from edge_vla.bench.peers import bnb
from edge_vla.bench.peers.llama import Linear, llama
from edge_vla.bench.peers.packages import needed
from edge_vla.checkpoint import Checkpoint
from edge_vla.checkpoint.keys import vision_keys
from edge_vla.runtime.gpu.engine import GpuEngine
from edge_vla.runtime.padding import padded
from edge_vla.runtime.types import Draft
from edge_vla.runtime.vision.towers import torch_vision

Tokens = tuple[int, ...]
BF16: Final = torch.bfloat16


@dataclass(frozen=True)
class Task:
    """What every side is asked: pixel values (n, 3 x towers, H, W) on the host, one prompt, so many tokens."""

    pixels: Tensor
    prompt: Tokens
    dims: int
    device: torch.device

    @staticmethod
    def make(checkpoint: Checkpoint, count: int, text: int, dims: int, device: torch.device) -> Task:
        """Smooth noise, and a prompt of `text` tokens that no action id is among."""
        spec = checkpoint.config.spec
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn(count, 3 * len(spec.towers), 8, 8, generator=generator)
        pixels = torch.nn.functional.interpolate(coarse, spec.image_size, mode="bilinear")
        ids = torch.randint(spec.decoder.eos + 1, spec.action.first, (text - 1,), generator=generator)
        return Task(pixels, (spec.decoder.bos, *ids.tolist()), dims, device)


@dataclass
class Side:
    """`act(i)` gives the tokens of picture i. `passes` are counted as they happen, where that is not fixed.

    `renew` lets go of what was recorded: the next actions record it again.
    """

    name: str
    act: Callable[[int], Tokens]
    about: str
    passes: list[int] = field(default_factory=list)
    renew: Callable[[], None] = lambda: None


def ours(name: str, engine: GpuEngine, task: Task, about: str) -> Side:
    def act(index: int) -> Tokens:
        return engine.decide(task.prompt, task.pixels[index % len(task.pixels)], task.dims).tokens

    return Side(name, act, about, renew=engine.graphs.clear)


def drafted(name: str, engine: GpuEngine, task: Task, chance: float, *, bitwise_exact: bool, about: str) -> Side:
    """Each dimension of each draft is right with this chance, drafts after a miss too: planted, for weights are random.

    What is right is asked before, plainly and untimed, once a picture.
    """
    generator = np.random.default_rng(0)
    first, bins = engine.spec.action.first, engine.spec.action.bins
    known: dict[int, list[int]] = {}
    passes = list[int]()

    def plant(right: Sequence[int]) -> Draft:
        def draft(accepted: Sequence[int], guesses: Sequence[int]) -> list[int]:  # noqa: ARG001
            missed = generator.random(len(right)) >= chance
            return [(one + int(off) * int(generator.integers(1, bins))) % bins
                    for one, off in zip(right, missed, strict=True)]  # fmt: skip

        return draft

    def act(index: int) -> Tokens:
        picture = index % len(task.pixels)
        decision = engine.decide(
            task.prompt, task.pixels[picture], task.dims, plant(known[picture]), bitwise_exact=bitwise_exact
        )
        passes.append(decision.passes)
        return decision.tokens

    for picture in range(len(task.pixels)):
        tokens = engine.decide(task.prompt, task.pixels[picture], task.dims).tokens
        known[picture] = [token - first for token in tokens]
    return Side(name, act, about, passes, engine.graphs.clear)


class Eager:
    """transformers' Llama after our towers in plain torch, a growing cache, one Python call a token."""

    def __init__(self, checkpoint: Checkpoint, decoder: nn.Module, task: Task) -> None:
        spec, load = checkpoint.config.spec, checkpoint.tensors.load
        self.llama, self.task = decoder, task
        self.vision = torch_vision(spec, {name: load(name) for name in vision_keys(spec)}, BF16, task.device)
        self.table: Any = decoder.get_submodule("model.embed_tokens")

    def act(self, index: int) -> Tokens:
        with torch.inference_mode():
            rows = self.rows(index)
            out: Any = self.llama(inputs_embeds=rows, use_cache=True, logits_to_keep=1)
            ids = [int(out.logits[0, -1].argmax())]
            while len(ids) < self.task.dims:
                last = torch.tensor([[ids[-1]]], device=self.task.device)
                out = self.llama(input_ids=last, past_key_values=out.past_key_values, use_cache=True)
                ids.append(int(out.logits[0, -1].argmax()))
        return tuple(ids)

    def rows(self, index: int) -> Tensor:
        """Embeddings (1, rows, width) in reading order."""
        pixels = self.task.pixels[index % len(self.task.pixels)].to(self.task.device)
        text: Tensor = self.table(torch.tensor([self.task.prompt], device=self.task.device))
        return torch.cat([text[:, :1], self.vision(pixels[None]), text[:, 1:]], dim=1)


class Compiled(Eager):
    """The same weights under `torch.compile` with a static cache: gpt-fast's recipe, steps as CUDA graphs."""

    def __init__(self, checkpoint: Checkpoint, decoder: nn.Module, task: Task, backend: str) -> None:
        super().__init__(checkpoint, decoder, task)
        length = padded(checkpoint.config.spec.patches + len(task.prompt) + task.dims)
        shape, static = checkpoint.config.spec.decoder, needed("transformers").StaticCache
        self.cache: Any = static(config=decoder.config, max_cache_len=length)
        # Before anything is compiled: what a traced prefill makes has no address that stays, and so no CUDA graph.
        self.cache.early_initialization(1, shape.kv_heads, shape.head_width, BF16, task.device)
        graphs: dict[str, Any] = {"mode": "reduce-overhead"} if backend == "inductor" else {}
        self.vision = torch.compile(self.vision, backend=backend, **graphs)  # type: ignore[assignment]
        self.prefill: Any = torch.compile(decoder.forward, backend=backend)
        self.step: Any = torch.compile(decoder.forward, backend=backend, **graphs)

    def act(self, index: int) -> Tokens:
        begin: Callable[[], None] = torch.compiler.cudagraph_mark_step_begin
        with torch.inference_mode():
            self.cache.reset()
            begin()
            rows = self.rows(index).clone()  # a graph's output is overwritten by its next run
            places = torch.arange(rows.shape[1], device=self.task.device)
            options = {"past_key_values": self.cache, "use_cache": True}
            out = self.prefill(inputs_embeds=rows, position_ids=places[None], logits_to_keep=1, **options)
            ids = [int(out.logits[0, -1].argmax())]
            while len(ids) < self.task.dims:
                begin()
                place = torch.tensor([[rows.shape[1] + len(ids) - 1]], device=self.task.device)
                last = torch.tensor([[ids[-1]]], device=self.task.device)
                out = self.step(input_ids=last, position_ids=place, **options)
                ids.append(int(out.logits[0, -1].argmax()))
        return tuple(ids)


def eager(checkpoint: Checkpoint, task: Task) -> Side:
    decoder = llama(checkpoint, BF16, task.device, "sdpa")
    about = "transformers' Llama in bfloat16, fused attention, growing cache; towers in plain torch"
    return Side("hf bf16, eager", Eager(checkpoint, decoder, task).act, about)


def compiled(checkpoint: Checkpoint, task: Task) -> Side:
    backend = "inductor" if task.device.type == "cuda" else "eager"
    decoder = llama(checkpoint, BF16, task.device, "sdpa")
    about = f"the same under torch.compile ({backend}), static cache, steps as CUDA graphs"
    return Side("hf bf16, compiled", Compiled(checkpoint, decoder, task, backend).act, about)


def bitsandbytes(bits: int, checkpoint: Checkpoint, task: Task) -> Side:
    name, layer = {4: "bitsandbytes nf4", 8: "bitsandbytes int8"}[bits], bnb.LINEARS[bits]()

    def linear(weight: Tensor, device: torch.device) -> nn.Module:
        return layer(weight.cpu(), device)  # it quantises on the way from the host

    quantised: Linear = linear
    decoder = llama(checkpoint, BF16, task.device, "sdpa", quantised)
    return Side(name, Eager(checkpoint, decoder, task).act, f"hf bf16, eager, with the decoder's matrices as {name}")


PEERS: Final[dict[str, Callable[[Checkpoint, Task], Side]]] = {
    "hf bf16, eager": eager,
    "hf bf16, compiled": compiled,
    "bitsandbytes nf4": partial(bitsandbytes, 4),
    "bitsandbytes int8": partial(bitsandbytes, 8),
}
