"""The golden frame: the action of an artifact when it was made, so that a robot can check that it still acts so.

Of a few candidates the one with the largest narrowest margin is kept, with how far rounding noise in every block and
layer moves its margins: a device whose tokens differ beyond that is wrong, not merely rounding otherwise.

Both are measured in one arithmetic that the machine decides and no stopwatch: the same export gives the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final

from PIL import Image

from edge_vla.artifact import Artifact, GoldenFrame
from edge_vla.data import Frame, synthetic_image
from edge_vla.export.writer import ArtifactWriter
from edge_vla.runtime import Action, Policy, load, rounding_noise
from edge_vla.runtime.golden import steps
from edge_vla.runtime.kernels import AUTO_BF16, TORCH_BF16
from edge_vla.runtime.noise import ROUNDING

INSTRUCTIONS: Final = ("pick up the object", "open the drawer")  # for synthetic images
MAX_CANDIDATES: Final = 8
NOISE_SEEDS: Final = 2
SAFETY: Final = 2.0


def choose_golden(draft: Artifact, frames: Sequence[Frame], writer: ArtifactWriter) -> GoldenFrame:
    """Run the candidates on the artifact as it will be loaded, and write the image of the chosen one beside it."""
    policy = load(draft.directory, "cpu", kernel=AUTO_BF16, check=False)
    key = next(iter(policy.config.statistics))
    candidates = [(frame.open(), frame.instruction, frame.unnorm_key or key) for frame in frames[:MAX_CANDIDATES]]
    if not candidates:
        size = policy.config.spec.image_size
        candidates = [(synthetic_image(i, size), text, key) for i, text in enumerate(INSTRUCTIONS)]
    actions = [(policy.act(*candidate), candidate) for candidate in candidates]
    action, (image, instruction, unnorm_key) = max(actions, key=lambda pair: min(pair[0].margins))
    walk = steps(policy, image, instruction, unnorm_key, action.tokens)
    name = "golden/000.png"
    writer.write(name, _png(image))
    del policy  # before the next is loaded
    reference = load(draft.directory, "cpu", "torch", kernel=TORCH_BF16, check=False)
    noise = _noise(reference, image, instruction, unnorm_key)
    margins = tuple(round(margin, 4) for margin in action.margins)
    return GoldenFrame(name, instruction, unnorm_key, action.tokens, margins, noise, walk)


def _noise(policy: Policy, image: Image.Image, instruction: str, key: str) -> float:
    """How far rounding noise moves a margin: the most over a few seeds, doubled, and at least four steps of the
    logits' own rounding. `policy` runs in torch's operators, to which noise can be added."""
    action = policy.act(image, instruction, key)
    logits = policy.network.head.logits(policy.forced(image, instruction, action.tokens))
    change = 2 * ROUNDING * float(logits.abs().max())
    for seed in range(NOISE_SEEDS):
        with rounding_noise(policy.network, seed):
            change = max(change, _margin_change(action, policy.act(image, instruction, key)))
    return round(SAFETY * change, 4)


def _margin_change(before: Action, after: Action) -> float:
    """The largest change of a margin, up to the first token that differs: later ones follow another prefix."""
    change = 0.0
    for ours, theirs, margin, other in zip(before.tokens, after.tokens, before.margins, after.margins, strict=True):
        if ours != theirs:
            return max(change, margin + other)  # the margin went through zero
        change = max(change, abs(other - margin))
    return change


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return buffer.getvalue()
