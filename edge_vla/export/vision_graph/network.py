"""Towers and projector as ONNX nodes: the same network as `edge_vla.model.vision`, strongly typed.

Patches are cut and multiplied as one flat product, because no opset that old TensorRT parsers read has a bf16
convolution. Attention is the plain pattern that TensorRT fuses. Linears that `ranges` name have rows rounded to int8.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch

from edge_vla.checkpoint.keys import TOWER_PREFIXES
from edge_vla.export.vision_graph.emitter import BATCH, Emitter
from edge_vla.runtime.vision.graphs import INPUT
from edge_vla.runtime.vision.precision import Arithmetic
from edge_vla.spec import PolicySpec, TowerSpec

CHANNELS: Final = 3
PARTS: Final = 3  # of a qkv product: queries, keys, values
END: Final = 2**31 - 1  # a slice to the end


@dataclass(frozen=True)
class RowRange:
    """How rows before a linear are rounded: codes times `scale`. `shrink` multiplies each channel first (K,)."""

    scale: float
    shrink: torch.Tensor | None = field(default=None, compare=False)


Ranges = Mapping[str, RowRange]
"""By a linear's name; its weight is then stored as int8 (K, N), with a scale for each of N."""


def write_typed_graph(
    spec: PolicySpec,
    data: Path,
    graph: Path,
    arithmetic: Arithmetic,
    ranges: Ranges | None = None,
    weights_only: Collection[str] = (),
) -> None:
    """Write `graph` over the weights in `data`, which must lie beside it when it is used.

    float32 pixel values (batch, 3 x towers, H, W) in, float32 embeddings (batch, patches, decoder width) out.
    Linears in `weights_only` have weights stored as those in `ranges`, and read rows of the working type.
    """
    emitter = Emitter(data, arithmetic)
    network = _Network(emitter, ranges or {}, frozenset(weights_only))
    pixels = emitter.cast(INPUT, "pixels")
    features = [
        network.tower(tower, prefix, network.cut(pixels, 1, CHANNELS * index, CHANNELS * (index + 1), f"{prefix}in"))
        for index, (tower, prefix) in enumerate(zip(spec.towers, TOWER_PREFIXES, strict=False))
    ]
    joined = emitter.op("Concat", features, "features", axis=2) if spec.fused else features[0]
    result = network.projector(joined, len(spec.projector_widths) - 1)
    size = spec.image_size
    emitter.save(
        graph, (BATCH, CHANNELS * len(spec.towers), size, size), (BATCH, spec.patches, spec.decoder.width), result
    )


@dataclass(frozen=True)
class _Network:
    emitter: Emitter
    ranges: Ranges
    weights_only: frozenset[str]

    def tower(self, spec: TowerSpec, prefix: str, pixels: str) -> str:
        """(batch, 3, H, W) -> (batch, patches, width) of the second-to-last block."""
        emitter = self.emitter
        stream = emitter.op(
            "Add", [self._patches(spec, prefix, pixels), emitter.weight(f"{prefix}pos_embed")], f"{prefix}x"
        )
        first = [f"{prefix}cls_token"] if spec.class_token else []
        first += [f"{prefix}reg_token"] if spec.registers else []
        if first:
            like = self.cut(stream, 1, 0, 1, f"{prefix}one")  # (batch, 1, width), for its batch
            zero = emitter.op("Mul", [like, emitter.number(0.0, "zero")], f"{prefix}zero")
            grown = [emitter.op("Add", [zero, emitter.weight(name)], f"{name}/grown") for name in first]
            stream = emitter.op("Concat", [*grown, stream], f"{prefix}tokens", axis=1)
        for index in range(spec.used_blocks):
            stream = self._block(spec, f"{prefix}blocks.{index}.", stream)
        return self.cut(stream, 1, spec.prefix, END, f"{prefix}features") if spec.prefix else stream

    def projector(self, features: str, linears: int) -> str:
        x = features
        for index in range(1, linears + 1):
            name = f"projector.fc{index}"
            x = self._linear(x if index == 1 else self.emitter.op("Gelu", [x], f"{name}/gelu"), name)
        return x

    def cut(self, value: str, axis: int, begin: int, end: int, name: str) -> str:
        at = [self.emitter.integers([number], f"at/{number}") for number in (begin, end, axis)]
        return self.emitter.op("Slice", [value, *at], name)

    def _patches(self, spec: TowerSpec, prefix: str, pixels: str) -> str:
        """(batch, 3, H, W) -> (batch, patches, width): a convolution whose stride is its size is a product."""
        emitter, grid, size, name = self.emitter, spec.grid, spec.patch, f"{prefix}patch_embed.proj"
        if grid * size != spec.image_size:
            pixels = self.cut(self.cut(pixels, 2, 0, grid * size, f"{name}/high"), 3, 0, grid * size, f"{name}/wide")
        squares = self._reshape(pixels, (0, CHANNELS, grid, size, grid, size), f"{name}/squares")
        ordered = emitter.op("Transpose", [squares], f"{name}/ordered", perm=[0, 2, 4, 1, 3, 5])
        rows = self._reshape(ordered, (0, grid * grid, CHANNELS * size * size), f"{name}/rows")
        weight = emitter.weight(f"{name}.weight", (spec.width, CHANNELS * size * size))
        product = emitter.op("MatMul", [rows, self._turned(weight)], f"{name}/product")
        return emitter.op("Add", [product, emitter.weight(f"{name}.bias")], name)

    def _block(self, spec: TowerSpec, at: str, stream: str) -> str:
        emitter = self.emitter
        for norm, half, scale in (("norm1", "attn", "ls1"), ("norm2", "mlp", "ls2")):
            normed = self._norm(spec, at + norm, stream)
            out = self._attention(spec, f"{at}attn.", normed) if half == "attn" else self._mlp(f"{at}mlp.", normed)
            if spec.layer_scale:
                out = emitter.op("Mul", [out, emitter.weight(f"{at}{scale}.scale_factor")], f"{at}{scale}")
            stream = emitter.op("Add", [stream, out], f"{at}{half}/sum")
        return stream

    def _norm(self, spec: TowerSpec, name: str, stream: str) -> str:
        inputs = [stream, self.emitter.weight(f"{name}.weight"), self.emitter.weight(f"{name}.bias")]
        return self.emitter.op("LayerNormalization", inputs, name, axis=-1, epsilon=spec.norm_eps)

    def _attention(self, spec: TowerSpec, at: str, normed: str) -> str:
        """The scale goes to the queries before the product, so that fp16 scores stay in range."""
        emitter, width = self.emitter, spec.width // spec.heads
        tokens = spec.patches + spec.prefix
        qkv = self._reshape(self._linear(normed, f"{at}qkv"), (0, tokens, PARTS, spec.heads, width), f"{at}split")
        parts = [
            self._head_rows(qkv, index, (0, tokens, spec.heads, width), f"{at}{name}")
            for index, name in enumerate("qkv")
        ]
        queries = emitter.op("Mul", [parts[0], emitter.number(1 / math.sqrt(width), f"scale/{width}")], f"{at}q/scaled")
        keys = emitter.op("Transpose", [parts[1]], f"{at}k/columns", perm=[0, 1, 3, 2])
        scores = emitter.op("MatMul", [queries, keys], f"{at}scores")
        weights = emitter.op("Softmax", [scores], f"{at}softmax", axis=-1)
        mixed = emitter.op("MatMul", [weights, parts[2]], f"{at}mixed")
        together = emitter.op("Transpose", [mixed], f"{at}together", perm=[0, 2, 1, 3])
        return self._linear(self._reshape(together, (0, tokens, spec.width), f"{at}rows"), f"{at}proj")

    def _head_rows(self, qkv: str, index: int, shape: tuple[int, ...], name: str) -> str:
        """One of queries, keys and values: (batch, heads, tokens, head width)."""
        part = self._reshape(self.cut(qkv, 2, index, index + 1, f"{name}/cut"), shape, f"{name}/heads")
        return self.emitter.op("Transpose", [part], name, perm=[0, 2, 1, 3])

    def _mlp(self, at: str, normed: str) -> str:
        hidden = self.emitter.op("Gelu", [self._linear(normed, f"{at}fc1")], f"{at}gelu")
        return self._linear(hidden, f"{at}fc2")

    def _linear(self, rows: str, name: str) -> str:
        emitter = self.emitter
        found = self.ranges.get(name)
        if found is not None:
            rows = self._rounded(rows, name, found)
        if found is not None or name in self.weights_only:
            weight = emitter.weight(f"{name}.weight", axis=1)
        else:
            weight = self._turned(emitter.weight(f"{name}.weight"))
        product = emitter.op("MatMul", [rows, weight], f"{name}/product")
        return emitter.op("Add", [product, emitter.weight(f"{name}.bias")], name)

    def _rounded(self, rows: str, name: str, found: RowRange) -> str:
        """Rows as int8 codes and back, which TensorRT and ONNX Runtime turn into an int8 product."""
        emitter = self.emitter
        if found.shrink is not None:
            rows = emitter.op(
                "Mul", [rows, emitter.number(found.shrink.float().numpy(), f"{name}/shrink")], f"{name}/even"
            )
        how = [emitter.number(found.scale, f"{name}/scale"), emitter.zero_point("zero_point")]
        codes = emitter.op("QuantizeLinear", [rows, *how], f"{name}/codes")
        return emitter.op("DequantizeLinear", [codes, *how], f"{name}/rounded")

    def _turned(self, weight: str) -> str:
        """(N, K) as it is stored -> (K, N)."""
        return self.emitter.op("Transpose", [weight], f"{weight}/turned", perm=[1, 0])

    def _reshape(self, value: str, shape: tuple[int, ...], name: str) -> str:
        return self.emitter.op("Reshape", [value, self.emitter.integers(shape, f"shape/{name}")], name)
