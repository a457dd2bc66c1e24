"""How the time of an export divides over its stages: counted arithmetic over what a processor does of each kind.

Only ratios matter, the clock gives the scale (`edge_vla.eta`). The rates are those of two cores with AVX-512, seen
while single layers of the 7B were exported; elsewhere the first stage foretells the others less well, and each stage
corrects itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from edge_vla.calibration.answers import PROBES
from edge_vla.checkpoint import key_table
from edge_vla.checkpoint.keys import vision_keys
from edge_vla.data import Frame
from edge_vla.eta import Costs
from edge_vla.export.golden import INSTRUCTIONS, MOST_CANDIDATES, SHAKES
from edge_vla.spec import DecoderSpec, PolicySpec

BF16: Final = 1 / 560e9  # seconds an operation of a product
FLOAT32: Final = 1 / 180e9
FLOAT64: Final = 1 / 45e9
READ: Final = 6e-9  # seconds a weight: read, or made from its seed
NEAREST: Final = 15e-9  # quantised to nearest, packed, hashed, written
SEARCHED: Final = 150e-9  # its scale searched and its column rounded, without the products
GRAPH: Final = 20.0  # seconds: tracing it
SMALL: Final = 1.6  # a tower's products are so much slower for their operations
AGAIN: Final = 1.45  # passes through a layer that is being rounded, in forwards


def expected(spec: PolicySpec, frames: Sequence[Frame], rows: int, calibrated: int) -> Costs:
    """Stages by their names. `rows` are those calibrated on, of `calibrated` frames; none where nothing is."""
    decoder, layers = spec.decoder, spec.decoder.layers
    weights = sum(map(math.prod, decoder.linears().values()))
    towers = sum(math.prod(key_table(spec)[name].shape) for name in vision_keys(spec))
    look = SMALL * 2 * towers * spec.patches * BF16
    forward, load = 2 * weights * rows * BF16, weights * READ
    answers = min(len(frames), MOST_CANDIDATES) + SHAKES + 1 if frames else len(INSTRUCTIONS) + SHAKES + 1
    answer = look + 2 * weights * layers * spec.patches * BF16
    costs = {"decoder": (layers, load + weights * NEAREST)}
    if rows:
        costs = {
            "calibration, pictures": (1, towers * READ + calibrated * look),
            "calibration, forward": (layers, load + forward),
            "calibration, back": (layers, load + forward * (2 + PROBES)),  # as much again for attention and sums
            "decoder": (layers, 2 * load + AGAIN * forward + rounding(decoder, rows)),
        }
    return {
        **costs,
        "vision": (3, (GRAPH + towers * (READ + NEAREST) + 4 * look) / 3),  # twice in float32
        "golden frame": (1, weights * layers * READ + answers * answer),
    }


def rounding(spec: DecoderSpec, rows: int) -> float:
    """Seconds: Hessians, their factors, and the columns of one layer."""
    shapes = spec.linears()
    inputs = [shapes[name][1] for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")]
    hessians = sum(rows * inner**2 * FLOAT32 + inner**3 / 3 * FLOAT64 for inner in inputs)
    return hessians + sum(outer * inner * (inner * FLOAT32 + SEARCHED) for outer, inner in shapes.values())
