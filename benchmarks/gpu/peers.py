"""The peers of `make bench-gpu`: transformers as its users run it, under torch.compile, and with bitsandbytes.

They get the same number of tokens as we do, over the whole vocabulary as upstream decodes, and do not stop early.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from benchmarks.gpu.systems import System, Task, Tokens
from edge_vla.bench.peers import bnb
from edge_vla.bench.peers.llama import Linear, llama
from edge_vla.bench.peers.packages import required
from edge_vla.checkpoint import Checkpoint
from edge_vla.checkpoint.keys import vision_keys
from edge_vla.runtime.padding import padded
from edge_vla.runtime.vision.towers import torch_vision

BF16: Final = torch.bfloat16
EAGER: Final = "hf bf16, eager"
COMPILED: Final = "hf bf16, compiled"
NF4: Final = "bitsandbytes nf4"
INT8: Final = "bitsandbytes int8"


class Eager:
    """transformers' Llama after our towers in plain torch, with a growing cache and one Python call per token."""

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
    """The same under `torch.compile` with a static cache, steps as CUDA graphs: gpt-fast's recipe."""

    def __init__(self, checkpoint: Checkpoint, decoder: nn.Module, task: Task, backend: str) -> None:
        super().__init__(checkpoint, decoder, task)
        length = padded(checkpoint.config.spec.patches + len(task.prompt) + task.dims)
        shape, static = checkpoint.config.spec.decoder, required("transformers").StaticCache
        self.cache: Any = static(config=decoder.config, max_cache_len=length)
        # Allocated before compiling: tensors made in a traced prefill have no fixed address for a CUDA graph.
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


def eager(checkpoint: Checkpoint, task: Task) -> System:
    decoder = llama(checkpoint, BF16, task.device, "sdpa")
    about = "transformers' Llama in bfloat16, fused attention, growing cache; towers in plain torch"
    return System(EAGER, Eager(checkpoint, decoder, task).act, about)


def compiled(checkpoint: Checkpoint, task: Task) -> System:
    backend = "inductor" if task.device.type == "cuda" else "eager"
    decoder = llama(checkpoint, BF16, task.device, "sdpa")
    about = f"the same under torch.compile ({backend}), static cache, steps as CUDA graphs"
    return System(COMPILED, Compiled(checkpoint, decoder, task, backend).act, about)


def bitsandbytes(bits: int, checkpoint: Checkpoint, task: Task) -> System:
    name, layer = {4: NF4, 8: INT8}[bits], bnb.LINEARS[bits]()

    def linear(weight: Tensor, device: torch.device) -> nn.Module:
        return layer(weight.cpu(), device)  # it quantises while copying from the host

    quantised: Linear = linear
    decoder = llama(checkpoint, BF16, task.device, "sdpa", quantised)
    return System(name, Eager(checkpoint, decoder, task).act, f"hf bf16, eager, with the decoder's matrices as {name}")


PEERS: Final[dict[str, Callable[[Checkpoint, Task], System]]] = {
    EAGER: eager,
    COMPILED: compiled,
    NF4: partial(bitsandbytes, 4),
    INT8: partial(bitsandbytes, 8),
}
