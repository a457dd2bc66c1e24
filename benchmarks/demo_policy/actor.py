"""Batched greedy decoding in plain torch, for many episodes at once.

For evaluation during training, where one action at a time would take an afternoon. Prompts are padded on the right; the
tokens that follow overwrite padded rows. A test holds that the runtime gives the same tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.demo_policy import tokenizer
from benchmarks.demo_policy.learner import ACTION_DIMS
from benchmarks.demo_policy.statistics import MASK, statistics
from edge_vla.model import Cache, OpenVLA
from edge_vla.openvla.action import ActionTokens
from edge_vla.openvla.config import CONSTANTS
from edge_vla.openvla.image import ImageContract, preprocess

CHUNK = 64


class Actor:
    """Greedy over the action ids, in the precision of the policy's weights."""

    def __init__(self, policy: OpenVLA) -> None:
        self.policy = policy.eval()
        spec = policy.spec
        constants = [CONSTANTS[tower.layer_scale] for tower in spec.towers]
        self.contract = ImageContract(
            spec.image_size, "resize-naive", tuple(c[0] for c in constants), tuple(c[1] for c in constants)
        )
        action = statistics()["action"]
        self.low, self.high = np.array(action["q01"]), np.array(action["q99"])
        self.coding = ActionTokens(spec.action)

    def act_batch(self, images: Sequence[Image.Image], instructions: Sequence[str]) -> NDArray[np.float64]:
        """(n, 7) actions in robot units."""
        normalised = self.coding.centres[self.coding.bins(self.tokens(images, instructions).ravel().tolist())]
        normalised = normalised.reshape(len(images), ACTION_DIMS)
        values = 0.5 * (normalised + 1) * (self.high - self.low) + self.low
        return np.where(np.array(MASK), values, normalised)

    def tokens(self, images: Sequence[Image.Image], instructions: Sequence[str]) -> NDArray[np.int64]:
        """(n, 7) action token ids."""
        return self.decode(images, [tokenizer.encode(text) for text in instructions])

    def decode(self, images: Sequence[Image.Image], prompts: Sequence[Sequence[int]]) -> NDArray[np.int64]:
        """(n, 7) action token ids, from prompts as token ids."""
        pixels = torch.from_numpy(np.stack([preprocess(image, self.contract) for image in images]))
        parts = [self._generate(pixels[i : i + CHUNK], prompts[i : i + CHUNK]) for i in range(0, len(prompts), CHUNK)]
        return torch.cat(parts).numpy()

    @torch.no_grad()
    def _generate(self, pixels: Tensor, prompts: Sequence[Sequence[int]]) -> Tensor:
        policy, spec = self.policy, self.policy.spec
        model, head = policy.language_model.model, policy.language_model.lm_head
        dtype = head.weight.dtype
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        x = policy.splice(model.embed_tokens(ids), policy.image_embeddings(pixels.to(dtype)))
        count, total = x.shape[:2]
        cache = Cache.allocate(spec.decoder, count, total + ACTION_DIMS, dtype, x.device)
        hidden = model(x, torch.arange(total).expand(count, -1), cache)
        position = lengths + spec.patches - 1
        last = hidden[torch.arange(count), position]
        found = []
        for _ in range(ACTION_DIMS):
            logits = head(last).float()[:, spec.action.first : spec.action.end]
            found.append(logits.argmax(-1) + spec.action.first)
            if len(found) < ACTION_DIMS:
                position = position + 1
                last = model(model.embed_tokens(found[-1])[:, None], position[:, None], cache)[:, 0]
        return torch.stack(found, dim=1)
