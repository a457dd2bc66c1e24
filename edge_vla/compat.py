"""The Hugging Face face of a policy: `processor(prompt, image)`, `norm_stats`, `predict_action`.

OpenVLA's own LIBERO and Bridge scripts call just these; give them `load(path)` in place of their model and
processor and they run unchanged. Actions come back as writable float64 arrays, because those scripts edit them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edge_vla.errors import UsageError
from edge_vla.openvla.image import as_rgb, preprocess
from edge_vla.runtime import Policy
from edge_vla.runtime import load as load_policy


class Inputs(dict[str, Tensor]):
    """What the processor returns: tensors by name, movable as one."""

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Inputs:
        """As `BatchFeature.to`: everything to the device, floats also to the type."""
        return Inputs(
            {key: value.to(device, dtype if value.is_floating_point() else None) for key, value in self.items()}
        )


class Processor:
    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def __call__(self, text: str, images: Image.Image | NDArray[Any]) -> Inputs:
        """A finished prompt and one image -> input_ids and attention_mask (1, T), pixel_values (1, C, H, W)."""
        ids = torch.tensor([self.policy.prompter.encode(text)])
        pixels = torch.from_numpy(preprocess(as_rgb(images), self.policy.config.image))[None]
        return Inputs(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels)


class Model:
    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    @property
    def norm_stats(self) -> Mapping[str, Any]:
        return self.policy.config.statistics.raw

    @norm_stats.setter
    def norm_stats(self, raw: Mapping[str, Any]) -> None:
        """OpenVLA's scripts replace the statistics after loading; so may a user of ours."""
        self.policy.use_statistics(raw)

    def predict_action(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,  # noqa: ARG002  passed by every script, and always all ones
        unnorm_key: str | None = None,
        do_sample: bool = False,
    ) -> NDArray[np.float64]:
        """(dims,) float64 in robot units, for a batch of one."""
        if do_sample:
            raise UsageError("do_sample=True: an action is the best token, never a sampled one")
        if input_ids.shape[0] != 1 or pixel_values.shape[0] != 1:
            raise UsageError(f"predict_action takes a batch of one, got {input_ids.shape[0]}")
        key = self.policy.config.statistics.resolve(unnorm_key)
        prompt = self.policy.prompter.finish(tuple(input_ids[0].tolist()))
        return self.policy.decide(prompt, pixel_values[0].float().cpu().numpy(), key).values

    def get_action_dim(self, unnorm_key: str | None = None) -> int:
        statistics = self.policy.config.statistics
        return statistics[statistics.resolve(unnorm_key)].dims


def load(path: str | Path, device: str = "auto", dtype: str = "bf16") -> tuple[Model, Processor]:
    """Model and processor over one policy; `path` is an artifact or a checkpoint."""
    policy = load_policy(path, device, dtype=dtype)
    return Model(policy), Processor(policy)
