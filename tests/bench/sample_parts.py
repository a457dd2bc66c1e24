"""Parts of a result that take code to invent: a sensitivity report as an export writes it, and a frame's picture."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from edge_vla.export.budget import spend
from edge_vla.export.recipe import Recipe
from edge_vla.export.sensitivity import Damages, Form, forms
from edge_vla.quant import Scheme, stored_bytes
from edge_vla.spec import TINY, PolicySpec

DIMS = ["dx", "dy", "dz", "roll", "pitch", "yaw", "grip"]


def sample_sensitivity(network: PolicySpec = TINY, bits: float = 4.5, seed: int = 0) -> dict[str, Any]:
    """The export's own report of a budget spent on invented damages, falling with the bytes and scattered."""
    luck = np.random.default_rng(seed)
    shapes = network.decoder.linears()
    damages: list[Damages] = []
    for _ in range(network.decoder.layers):
        layer = {}
        for name, shape in shapes.items():
            sizes = [8 * stored_bytes(*_wants(form, shape)) / math.prod(shape) for form in forms(shape[1], None)[:-1]]
            scale = luck.lognormal(-3, 1)
            layer[name] = [[*(scale * luck.lognormal(0, 0.2) * 4.0**-size for size in sizes), 0.0] for _ in range(2)]
        damages.append(layer)
    return spend(network, Recipe(method="gptq", bits_per_weight=bits), damages).report()


def _wants(form: Form, shape: tuple[int, int]) -> tuple[Scheme, tuple[int, int], int | None]:
    return form[0], shape, form[1]


def worst(rng: np.random.Generator, index: int) -> dict[str, Any]:
    image = Image.new("RGB", (112, 112), (188, 170, 150))
    draw = ImageDraw.Draw(image)
    for colour in ("#b3362c", "#2f63b8", "#3c8f4a", "#e0b93b"):
        x, y = rng.integers(12, 88, 2).tolist()
        draw.rectangle((x, y, x + 13, y + 13), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    apart = rng.integers(0, 60, len(DIMS))
    theirs = rng.normal(0, 0.01, len(DIMS))
    ours = theirs + apart * 0.0004 * rng.choice([-1, 1], len(DIMS))
    return {
        "frame": 17 + 40 * index,
        "episode": f"seed-{index}",
        "step": 9,
        "instruction": "put the red block on the white plate",
        "image": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(),
        "reference_tokens": rng.integers(256, 511, len(DIMS)).tolist(),
        "tokens": rng.integers(256, 511, len(DIMS)).tolist(),
        "reference_action": theirs.tolist(),
        "action": ours.tolist(),
        "bins_apart": apart.tolist(),
    }
