"""Frames -> the rows that the decoder sees in use: image embeddings, prompt, and the recorded action's tokens.

The action's tokens are part of the sequence because all predictions but the first read them. Knows prompts, images
and tokens; nothing of layers or formats.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from edge_vla.checkpoint import Checkpoint
from edge_vla.checkpoint.keys import EMBEDDINGS, vision_keys
from edge_vla.data import Frame, sound_action
from edge_vla.errors import FrameError, NumericError
from edge_vla.openvla import ActionTokens, PolicyConfig, Prompter, preprocess
from edge_vla.runtime.vision.towers import torch_vision

IMAGES_AT_ONCE: Final = 8
CPU: Final = torch.device("cpu")


@dataclass(frozen=True)
class Rows:
    """Sequences of one length, of frames whose prompts have `prompt` tokens and whose actions have `dims`."""

    hidden: Tensor  # (n, T, width): embeddings at first, then the input of each further layer
    prompt: int
    dims: int  # so many last rows predict an action token

    @property
    def length(self) -> int:
        return self.hidden.shape[1]


def action_tokens(frame: Frame, config: PolicyConfig) -> tuple[int, ...]:
    """The token ids of the recorded action; FrameError without one, or with one that does not fit."""
    statistics = config.statistics[config.statistics.resolve(frame.unnorm_key)]
    if frame.action is None:
        raise FrameError(
            f"{frame.image} has no recorded action, and calibrating needs its tokens: record actions too, or use "
            "--method rtn"
        )
    normalised = statistics.normalise(np.asarray(sound_action(frame, statistics), dtype=np.float64))
    return tuple(int(token) for token in ActionTokens(config.spec.action).encode(normalised))


def embed(
    checkpoint: Checkpoint,
    frames: Sequence[Frame],
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device = CPU,
    vision: Mapping[str, Tensor] | None = None,
) -> list[Rows]:
    """Embeddings of every frame in `dtype`, on the host, grouped by length; within a length, in the order given.

    The towers run on `device` and are dropped afterwards; `vision` replaces the checkpoint's weights of towers and
    projector.
    """
    config, source = checkpoint.config, checkpoint.tensors
    prompter = Prompter(checkpoint.tokenizer_json, config.prompt, config.spec.decoder)
    table = source.load(EMBEDDINGS).to(dtype)
    asked = [(prompter(frame.instruction), action_tokens(frame, config)) for frame in frames]
    images = _embed_images(
        config, vision or {name: source.load(name) for name in vision_keys(config.spec)}, frames, dtype, device
    )
    lengths: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
    for (prompt, tokens), image in zip(asked, images, strict=True):
        text, given = table[list(prompt)], table[list(tokens[:-1])]
        lengths[len(prompt), len(tokens)].append(torch.cat([text[:1], image, text[1:], given]))
    return [Rows(torch.stack(rows), prompt, dims) for (prompt, dims), rows in sorted(lengths.items())]


def _embed_images(
    config: PolicyConfig,
    weights: Mapping[str, Tensor],
    frames: Sequence[Frame],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """(frames, patches, width)."""
    network = torch_vision(config.spec, weights, dtype, device)
    found = []
    with torch.inference_mode():
        for start in range(0, len(frames), IMAGES_AT_ONCE):
            images = [frame.open() for frame in frames[start : start + IMAGES_AT_ONCE]]
            pixels = np.stack([preprocess(image, config.image) for image in images])
            found.append(network(torch.from_numpy(pixels)).cpu())
    embeddings = torch.cat(found)
    if not torch.isfinite(embeddings).all():
        raise NumericError("the towers give non-finite numbers on the calibration frames: verify the checkpoint")
    return embeddings
