"""Golden frames: what an artifact answered when it was made, so that a robot can tell that it still does.

Of a few candidates the one whose tokens lead most clearly is kept, with how far a rounding-sized change of the
image embeddings moves those leads: a device that answers otherwise beyond that is wrong, not merely different.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from edge_vla.artifact import Artifact, GoldenFrame
from edge_vla.export.writer import ArtifactWriter
from edge_vla.frames import Frame, synthetic_image
from edge_vla.runtime import Action, Policy, load

INSTRUCTIONS = ("pick up the object", "open the drawer")
MOST_CANDIDATES = 8
ROUNDING = 2.0**-8  # one bf16 step, relative
SAFETY = 2.0


def choose_golden(draft: Artifact, frames: Sequence[Frame], writer: ArtifactWriter) -> GoldenFrame:
    """Run the candidates on the artifact as it will be loaded, and write the chosen image beside it."""
    policy = load(draft.directory, "cpu", check=False)
    key = next(iter(policy.config.statistics))
    candidates = [(frame.open(), frame.instruction, frame.unnorm_key or key) for frame in frames[:MOST_CANDIDATES]]
    if not candidates:
        size = policy.config.spec.image_size
        candidates = [(synthetic_image(i, size), text, key) for i, text in enumerate(INSTRUCTIONS)]
    answered = [(policy.act(*candidate), candidate) for candidate in candidates]
    action, (image, instruction, used) = max(answered, key=lambda pair: min(pair[0].margins))
    name = "golden/000.png"
    writer.write(name, _png(image))
    noise = _noise(policy, image, instruction, used, action)
    margins = tuple(round(margin, 4) for margin in action.margins)
    return GoldenFrame(name, instruction, used, action.tokens, margins, noise)


def _noise(policy: Policy, image: Image.Image, instruction: str, key: str, action: Action) -> float:
    """How far a rounding-sized change moves a lead while the tokens stay the same, doubled for safety."""
    shaken = Policy(_shaken(policy), policy.config, policy.prompter.tokenizer.to_str())
    other = shaken.act(image, instruction, key)
    pairs = zip(action.tokens, other.tokens, action.margins, other.margins, strict=True)
    moved = 0.0
    for ours, theirs, before, after in pairs:
        if ours != theirs:
            moved = max(moved, before + after)  # the lead went through zero; what follows answers another prefix
            break
        moved = max(moved, abs(after - before))
    return round(SAFETY * moved, 4)


def _shaken(policy: Policy) -> Any:
    network = policy.network

    def vision(pixels: Tensor) -> Tensor:
        embeddings = network.vision(pixels)
        generator = torch.Generator().manual_seed(0)
        shake = torch.rand(embeddings.shape, generator=generator) * 2 - 1
        return embeddings * (1 + ROUNDING * shake.to(embeddings.device, embeddings.dtype))

    return dataclasses.replace(network, vision=vision)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return buffer.getvalue()
