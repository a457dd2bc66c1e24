"""How the time of an export divides over its stages: counted operations times what a processor takes for each kind.

The clock gives the scale (`edge_vla.eta`), but for tracing the towers' graph, which takes as long on any machine. The
rates are those of two cores with AVX-512, measured while single layers of the 7B were exported.
"""

from __future__ import annotations

import math
from typing import Final

from edge_vla.calibration.action_gradients import PROBES
from edge_vla.calibration.sets import CalibrationSet
from edge_vla.eta import Costs, Step
from edge_vla.export.golden import INSTRUCTIONS, MAX_CANDIDATES, NOISE_SEEDS
from edge_vla.export.sizes import vision_weights
from edge_vla.spec import DecoderSpec, PolicySpec

BF16: Final = 1 / 560e9  # seconds for an operation of a matrix product
FLOAT32: Final = 1 / 180e9
FLOAT64: Final = 1 / 45e9
READ: Final = 6e-9  # seconds for a weight: read, or generated from its seed
NEAREST: Final = 15e-9  # rounded to nearest, packed, hashed, written
SEARCHED: Final = 150e-9  # its scale searched and its column rounded, without the products
EXPORTER: Final = 5.0  # seconds for importing what traces the graph
BLOCK: Final = 0.3  # seconds for tracing one block of a tower
TOWER: Final = 1.6  # a tower's products are so much slower for their operations
REPEATED: Final = 1.45  # forward passes through a layer that is being quantised


def stage_costs(spec: PolicySpec, frames: int, rows: int, calibration: CalibrationSet | None) -> Costs:
    """Every step of each stage. `frames` may become golden frames; `rows` are calibrated on, if any."""
    decoder, layers, towers = spec.decoder, spec.decoder.layers, vision_weights(spec)
    weights = sum(map(math.prod, decoder.linears().values()))
    vision_pass = TOWER * 2 * towers * spec.patches * BF16
    forward, load = 2 * weights * rows * BF16, weights * READ
    actions = (min(frames, MAX_CANDIDATES) or len(INSTRUCTIONS)) + NOISE_SEEDS + 1
    action = vision_pass + 2 * weights * layers * spec.patches * BF16
    costs = {"decoder": [Step(load + weights * NEAREST)] * layers}
    if calibration is not None:
        costs = {
            "calibration, pictures": [Step(towers * READ + len(calibration.frames) * vision_pass)],
            "calibration, forward": [Step(load + forward)] * layers,
            "calibration, back": [Step(load + forward * (2 + PROBES))] * layers,  # as much for attention and sums
            "decoder": [Step(2 * load + REPEATED * forward + _quantising(decoder, rows))] * layers,
        }
    ends = decoder.vocab_rows * decoder.width * (READ + NEAREST)
    tracing = EXPORTER + BLOCK * sum(tower.depth for tower in spec.towers)
    written = Step(towers * (READ + NEAREST) + 2 * vision_pass, tracing)
    return {
        **costs,
        "vision": [Step(ends), written, Step(2 * vision_pass)],  # twice in float32
        "golden frame": [Step(weights * layers * READ + actions * action)],
    }


def _quantising(spec: DecoderSpec, rows: int) -> float:
    """Seconds: Hessians, their factors, and the columns of one layer."""
    shapes = spec.linears()
    inputs = [shapes[name][1] for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")]
    hessians = sum(rows * k**2 * FLOAT32 + k**3 / 3 * FLOAT64 for k in inputs)
    return hessians + sum(n * k * (k * FLOAT32 + SEARCHED) for n, k in shapes.values())
