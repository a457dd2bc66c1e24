"""Golden frames: what an artifact answered when it was made, so that a robot can tell that it still does.

Of a few candidates the one whose tokens lead most clearly is kept, with how far rounding-sized noise in every block
and layer moves those leads: a device that answers otherwise beyond that is wrong, not merely different.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image

from edge_vla.artifact import Artifact, GoldenFrame
from edge_vla.data import Frame, synthetic_image
from edge_vla.export.writer import ArtifactWriter
from edge_vla.runtime import Action, Policy, load, rounding_noise
from edge_vla.runtime.noise import ROUNDING

INSTRUCTIONS = ("pick up the object", "open the drawer")
MOST_CANDIDATES = 8
SHAKES = 2
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
    del policy  # before the next is loaded
    noise = _noise(load(draft.directory, "cpu", "torch", kernel="torch", check=False), image, instruction, used)
    margins = tuple(round(margin, 4) for margin in action.margins)
    return GoldenFrame(name, instruction, used, action.tokens, margins, noise)


def _noise(policy: Policy, image: Image.Image, instruction: str, key: str) -> float:
    """How far rounding everywhere moves a lead: the most over a few seeds, doubled, and never under two steps of
    the logits' own rounding. Of a policy in torch's operators, whose blocks can be shaken."""
    action = policy.act(image, instruction, key)
    logits = policy.network.head.logits(policy.forced(image, instruction, action.tokens))
    moved = 2 * ROUNDING * float(logits.abs().max())
    for seed in range(SHAKES):
        with rounding_noise(policy.network, seed):
            moved = max(moved, _moved(action, policy.act(image, instruction, key)))
    return round(SAFETY * moved, 4)


def _moved(before: Action, after: Action) -> float:
    """The largest change of a lead, up to the first token that differs: what follows answers another prefix."""
    moved = 0.0
    for ours, theirs, lead, other in zip(before.tokens, after.tokens, before.margins, after.margins, strict=True):
        if ours != theirs:
            return max(moved, lead + other)  # the lead went through zero
        moved = max(moved, abs(other - lead))
    return moved


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return buffer.getvalue()
