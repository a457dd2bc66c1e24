"""A checkpoint in turned coordinates: the same function, with outlier channels spread over all the others.

An RMSNorm sees only a row's length, so a Llama's stream may be turned by any orthogonal R once the norms' scales stand
in the linears after them: what writes to the stream takes R on its output side, what reads from it on its input side
(QuaRot, Ashkboos et al., arXiv:2404.00456; SpinQuant's R1 and R2, Liu et al., arXiv:2405.16406). A second one turns
each value head between v_proj and o_proj. All of it lies in the weights: a policy pays nothing for it when it runs.
down_proj's inputs stay as they are: turning those would cost a transform at every step.

R is a randomised Hadamard matrix: signs, then a Walsh-Hadamard transform in blocks of the largest power of two that
divides the width. Signs are bits of SHA-256 of the seed and butterflies only add pairs, so a seed gives the same bits
on every machine. Knows tensors' names; nothing of formats.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, KeysView, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from edge_vla.checkpoint.keys import DECODER_PREFIX, EMBEDDINGS, HEAD, layer_prefix
from edge_vla.checkpoint.tensors import TensorSource
from edge_vla.spec import DecoderSpec, PolicySpec

AT_ONCE: Final = 1 << 18  # numbers that are turned together: they stay in a core's cache
FINAL_NORM: Final = DECODER_PREFIX + "norm.weight"
READERS: Final[Mapping[str, tuple[str, ...]]] = {  # norm -> the linears that read it
    "input_layernorm.weight": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm.weight": ("mlp.gate_proj", "mlp.up_proj"),
}


@dataclass(frozen=True, eq=False)
class Rotation:
    """R = diag(signs) H, where H is a normalised Walsh-Hadamard matrix in blocks of `block`, so that R R^T = I."""

    signs: Tensor  # (width,) float64
    block: int

    @staticmethod
    def draw(heads: int, width: int, label: str) -> Rotation:
        """For `heads` vectors of `width` beside each other, none mixed with another; `label` decides the signs."""
        return Rotation(signs(heads * width, label), width & -width)

    def columns(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """(width, n) -> R^T diag(scale) x in float32, or in float64 if x is."""
        turned = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, torch.float32))
        factors = self.signs if scale is None else self.signs * scale.double()
        step = max(1, AT_ONCE // len(x))
        for start in range(0, x.shape[1], step):
            some = x[:, start : start + step].double() * factors[:, None]
            turned[:, start : start + step] = walsh_hadamard_(some.contiguous(), self.block)
        return turned

    def rows(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """(n, width) -> x diag(scale) R, in the same types."""
        return self.columns(x.T, scale).T.contiguous()

    def shared(self, times: int, width: int) -> Rotation:
        """Of `times` heads in the place of each one of `width`."""
        repeated = self.signs.view(-1, 1, width).expand(-1, times, -1)
        return Rotation(repeated.reshape(-1), self.block)


def signs(count: int, label: str) -> Tensor:
    """(count,) float64 of +1 and -1."""
    blocks = range(-(-count // 256))
    drawn = b"".join(hashlib.sha256(f"{label} {block}".encode()).digest() for block in blocks)
    bits = np.unpackbits(np.frombuffer(drawn, dtype=np.uint8))[:count]
    return torch.from_numpy(1 - 2 * bits.astype(np.float64))


def walsh_hadamard_(x: Tensor, block: int) -> Tensor:
    """(width, n), in place: the normalised transform of each `block` rows, a power of two that divides the width."""
    half = 1
    while half < block:
        pairs = x.view(-1, 2, half, x.shape[1])
        first, second = pairs[:, 0], pairs[:, 1]
        difference = first - second
        first.add_(second)
        second.copy_(difference)
        half *= 2
    return x.div_(math.sqrt(block))


@dataclass(frozen=True)
class Turn:
    """What becomes of one tensor: the norm before it folded in, then its input and its output side turned."""

    norm: str | None = None
    inputs: Rotation | None = None
    outputs: Rotation | None = None

    def apply(self, weight: Tensor, norm: Tensor | None) -> Tensor:
        """Of a weight (N, K), or of a bias (N,)."""
        if self.inputs is not None:
            weight = self.inputs.rows(weight, norm)
        if self.outputs is None:
            return weight
        return self.outputs.rows(weight[None])[0] if weight.dim() == 1 else self.outputs.columns(weight)


class RotatedTensors:
    """A source whose network is turned as its tensors are read: in float32, norms as ones."""

    def __init__(self, base: TensorSource, spec: PolicySpec, seed: int) -> None:
        self.base, self.seed = base, seed
        self.turns = dict(_turns(spec, f"edge-vla rotate {seed}"))
        self.norms = {turn.norm for turn in self.turns.values() if turn.norm is not None}

    def __str__(self) -> str:
        return f"{self.base}, rotated"

    def names(self) -> KeysView[str]:
        return self.base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.base.shape(name)

    def load(self, name: str) -> Tensor:
        if name in self.norms:
            return torch.ones(self.shape(name))
        tensor, turn = self.base.load(name), self.turns.get(name)
        if turn is None:
            return tensor
        return turn.apply(tensor, None if turn.norm is None else self.base.load(turn.norm))


def _turns(spec: PolicySpec, label: str) -> Iterator[tuple[str, Turn]]:
    decoder, stream = spec.decoder, Rotation.draw(1, spec.decoder.width, f"{label} stream")
    last = len(spec.projector_widths) - 1
    for part in ("weight", "bias"):
        yield f"projector.fc{last}.{part}", Turn(outputs=stream)
    yield EMBEDDINGS, Turn(inputs=stream)  # its rows are rows of the stream
    yield HEAD, Turn(FINAL_NORM, inputs=stream)
    for index in range(decoder.layers):
        values = Rotation.draw(decoder.kv_heads, decoder.head_width, f"{label} values {index}")
        for name, turn in _layer(decoder, layer_prefix(index), stream, values):
            yield f"{layer_prefix(index)}{name}.weight", turn


def _layer(spec: DecoderSpec, prefix: str, stream: Rotation, values: Rotation) -> Iterator[tuple[str, Turn]]:
    for norm, names in READERS.items():
        for name in names:
            yield name, Turn(prefix + norm, stream, values if name == "self_attn.v_proj" else None)
    mixed = values.shared(spec.heads // spec.kv_heads, spec.head_width)  # query heads that share a value head
    yield "self_attn.o_proj", Turn(inputs=mixed, outputs=stream)
    yield "mlp.down_proj", Turn(outputs=stream)
