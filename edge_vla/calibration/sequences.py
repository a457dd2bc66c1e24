"""Frames -> the rows that the decoder really sees: image embeddings, prompt, and the action tokens that were given.

An action's tokens are part of the sequence, because six of its seven predictions are made on them. Knows prompts,
pictures and tokens; nothing of layers or formats.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from edge_vla.checkpoint import Checkpoint
from edge_vla.checkpoint.keys import EMBEDDINGS, vision_keys
from edge_vla.data import Frame
from edge_vla.errors import FrameError, NumericError
from edge_vla.openvla import ActionTokens, PolicyConfig, Prompter, preprocess
from edge_vla.runtime.vision import torch_vision

IMAGES_AT_ONCE = 8
CPU: Final = torch.device("cpu")


@dataclass(frozen=True)
class Rows:
    """Sequences of one length. `prompt` and `dims` say where the text ends and how many rows predict."""

    hidden: Tensor  # (n, T, width): embeddings at first, then the input of each next layer
    prompt: int
    dims: int

    @property
    def length(self) -> int:
        return self.hidden.shape[1]

    def acting(self) -> Tensor:
        """(T,) bool: the rows whose answer is an action token, the last `dims`."""
        return torch.arange(self.length) >= self.length - self.dims


def action_tokens(frame: Frame, config: PolicyConfig) -> tuple[int, ...]:
    """The ids of the action that was recorded; FrameError without one, or with one that does not fit."""
    statistics = config.statistics[config.statistics.resolve(frame.unnorm_key)]
    if frame.action is None:
        raise FrameError(
            f"{frame.image} has no recorded action: calibrating needs the action tokens too; record with actions, "
            "or use --method rtn"
        )
    if len(frame.action) != statistics.dims or not np.isfinite(frame.action).all():
        raise FrameError(f"{frame.image}: expected {statistics.dims} finite numbers as action, got {frame.action}")
    normalised = statistics.normalise(np.asarray(frame.action, dtype=np.float64))
    return tuple(int(token) for token in ActionTokens(config.spec.action).encode(normalised))


def embed(
    checkpoint: Checkpoint,
    frames: Sequence[Frame],
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device = CPU,
) -> list[Rows]:
    """Embeddings of every frame, on the host, grouped by length; within a length, in the order given.

    `device` is where the towers see.

    Holds the towers while it runs, and afterwards only the rows: frames x rows x width of `dtype`.
    """
    config, source = checkpoint.config, checkpoint.tensors
    prompter = Prompter(checkpoint.tokenizer_json, config.prompt, config.spec.decoder)
    table = source.load(EMBEDDINGS).to(dtype)
    asked = [(frame, prompter(frame.instruction), action_tokens(frame, config)) for frame in frames]
    images = _see(checkpoint, frames, dtype, device)
    lengths: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
    for (_, prompt, tokens), image in zip(asked, images, strict=True):
        text, given = table[list(prompt)], table[list(tokens[:-1])]
        lengths[len(prompt), len(tokens)].append(torch.cat([text[:1], image, text[1:], given]))
    return [Rows(torch.stack(rows), prompt, dims) for (prompt, dims), rows in sorted(lengths.items())]


def _see(checkpoint: Checkpoint, frames: Sequence[Frame], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(frames, patches, width)."""
    spec = checkpoint.config.spec
    weights = {name: checkpoint.tensors.load(name) for name in vision_keys(spec)}
    network = torch_vision(spec, weights, dtype, device)
    seen = []
    with torch.inference_mode():
        for start in range(0, len(frames), IMAGES_AT_ONCE):
            pictures = [frame.open() for frame in frames[start : start + IMAGES_AT_ONCE]]
            pixels = np.stack([preprocess(picture, checkpoint.config.image) for picture in pictures])
            seen.append(network(torch.from_numpy(pixels)).cpu())
    embeddings = torch.cat(seen)
    if not torch.isfinite(embeddings).all():
        raise NumericError("the towers give non-finite numbers on the calibration frames: verify the checkpoint")
    return embeddings
