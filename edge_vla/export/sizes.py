"""Bytes and memory, counted from the dimensions alone: the one place that budgets, preflight and reports ask."""

from __future__ import annotations

import math
from typing import Final

from edge_vla.calibration.action_gradients import PROBES
from edge_vla.checkpoint import key_table
from edge_vla.checkpoint.keys import EMBEDDINGS, vision_keys
from edge_vla.export.formats import Formats
from edge_vla.quant import BYTE
from edge_vla.spec import DecoderSpec, PolicySpec

BF16_BYTES: Final = 2
FLOAT32_BYTES: Final = 4
FLOAT64_BYTES: Final = 8


def linear_weights(spec: DecoderSpec) -> int:
    """Weights in all linears of the decoder."""
    return spec.layers * sum(map(math.prod, spec.linears().values()))


def vision_weights(spec: PolicySpec) -> int:
    """Weights of towers and projector."""
    table = key_table(spec)
    return sum(math.prod(table[name].shape) for name in vision_keys(spec))


def vision_bytes(spec: PolicySpec, bits: int) -> int:
    return vision_weights(spec) * bits // BYTE


def linears_bytes(spec: DecoderSpec, formats: Formats) -> int:
    """The decoder's linears as they are stored."""
    shapes = spec.linears()
    return sum(form.bytes(shapes[name]) for layer in formats for name, form in layer.items())


def fixed_bytes(spec: PolicySpec) -> int:
    """What no recipe makes smaller: embeddings, norms and the head's action rows."""
    decoder = spec.decoder
    norms = (2 * decoder.layers + 1) * decoder.width
    return BF16_BYTES * (math.prod(key_table(spec)[EMBEDDINGS].shape) + norms + spec.action.bins * decoder.width)


def scratch_bytes(spec: DecoderSpec, rows: int) -> int:
    """What calibrating on so many rows needs on disk at most: each layer's inputs, gradients and row weights."""
    hidden = rows * spec.width * BF16_BYTES
    return hidden * (spec.layers + 1 + 2 * PROBES) + rows * FLOAT32_BYTES * 4 * spec.layers


def calibration_memory(spec: DecoderSpec, rows: int) -> int:
    """Peak bytes of calibrating on so many rows: one layer twice, the widest Hessian with its factors, the rows."""
    shapes = spec.linears().values()
    layer = sum(map(math.prod, shapes)) * BF16_BYTES
    widest = max(in_features for _, in_features in shapes)
    hessian = widest**2 * (2 * FLOAT32_BYTES + 2 * FLOAT64_BYTES) + 2 * max(map(math.prod, shapes)) * FLOAT32_BYTES
    return 2 * layer + hessian + rows * spec.width * BF16_BYTES * (2 + 2 * PROBES)
