"""A policy with OpenVLA's Hugging Face API: `processor(prompt, image)`, `norm_stats`, `predict_action`.

OpenVLA's LIBERO and Bridge scripts call only these: with `load(path)` in place of their model and processor they run
unchanged. Actions are writable float64 arrays, because those scripts edit them.
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
    """The processor's output: tensors by name, moved together."""

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Inputs:
        """As `BatchFeature.to`: all tensors to the device, floating-point ones also to the dtype."""
        return Inputs(
            {key: value.to(device, dtype if value.is_floating_point() else None) for key, value in self.items()}
        )


class Processor:
    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def __call__(self, text: str, images: Image.Image | NDArray[Any]) -> Inputs:
        """A full prompt and one image -> input_ids and attention_mask (1, T), pixel_values (1, C, H, W) float32."""
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
        """Replace the statistics, as OpenVLA's scripts do after loading."""
        self.policy.use_statistics(raw)

    def predict_action(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,  # noqa: ARG002  every script passes it, always all ones
        unnorm_key: str | None = None,
        do_sample: bool = False,
    ) -> NDArray[np.float64]:
        """(dims,) float64 in robot units. UsageError for a batch of more than one or for sampling."""
        if do_sample:
            raise UsageError("do_sample=True is not supported: actions are decoded greedily; pass do_sample=False")
        if input_ids.shape[0] != 1 or pixel_values.shape[0] != 1:
            raise UsageError(f"predict_action got a batch of {input_ids.shape[0]}, expected 1: call it once per image")
        key = self.policy.config.statistics.resolve(unnorm_key)
        prompt = self.policy.prompter.finish(tuple(input_ids[0].tolist()))
        return self.policy.decide(prompt, pixel_values[0].float().cpu().numpy(), key).values

    def get_action_dim(self, unnorm_key: str | None = None) -> int:
        return self.policy.dims(unnorm_key)


def load(path: str | Path, device: str = "auto", dtype: str = "bf16") -> tuple[Model, Processor]:
    """Model and processor of one policy; `path` is an artifact or a checkpoint, as for `edge_vla.load`."""
    policy = load_policy(path, device, dtype=dtype)
    return Model(policy), Processor(policy)
