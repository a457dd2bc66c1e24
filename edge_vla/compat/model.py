"""OpenVLA's model as scripts hold it: `norm_stats` theirs to edit, `predict_action`, and what they call on any module.

Actions are writable float64 arrays, because those scripts edit them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_vla.compat.arguments import Place, refuse_others
from edge_vla.errors import UsageError
from edge_vla.openvla import ActionStatistics, Statistics
from edge_vla.runtime import Policy

OTHERS: Final = MappingProxyType(
    {
        "generate": "it decides action tokens only: call predict_action",
        "forward": "it decides action tokens only: call predict_action",
        "parameters": "its weights are packed for their kernels: ask model.device and model.dtype",
        "named_parameters": "its weights are packed for their kernels: ask model.device and model.dtype",
        "state_dict": "its weights are packed for their kernels: read the artifact's files",
        "save_pretrained": "an export is written by `edge-vla export`",
        "merge_and_unload": "adapters are merged by `edge-vla export --adapter`",
    }
)


@dataclass(frozen=True)
class TextConfig:
    vocab_size: int


@dataclass(frozen=True)
class Config:
    """What scripts read of OpenVLA's config. `norm_stats` is the dictionary that the model begins with."""

    norm_stats: dict[str, Any]
    image_sizes: list[int]
    n_action_bins: int
    pad_to_multiple_of: int
    text_config: TextConfig
    use_fused_vision_backbone: bool
    torch_dtype: torch.dtype
    model_type: str = "openvla"


class Model:
    """`norm_stats` is a plain dictionary; what it holds when `predict_action` is called is what un-normalises."""

    training = False

    def __init__(self, policy: Policy) -> None:
        spec = policy.config.spec
        self.policy = policy
        self.norm_stats: dict[str, Any] = copy.deepcopy(dict(policy.config.statistics.raw))
        self.vocab_size = spec.action.end
        self.bins, self.bin_centers = policy.tokens.edges.copy(), policy.tokens.centres.copy()
        self.config = Config(
            norm_stats=self.norm_stats,
            image_sizes=[tower.image_size for tower in spec.towers],
            n_action_bins=spec.action.bins,
            pad_to_multiple_of=spec.decoder.vocab_rows - spec.action.end,
            text_config=TextConfig(spec.decoder.vocab_rows),
            use_fused_vision_backbone=len(spec.towers) > 1,
            torch_dtype=self.dtype,
        )

    def predict_action(
        self, input_ids: Tensor | None = None, unnorm_key: str | None = None, **kwargs: Any
    ) -> NDArray[np.float64]:
        """(dims,) float64 in robot units, with `pixel_values=` (1, C, H, W).

        UsageError for a batch, for sampling, and for any other argument that would change the result.
        """
        pixels, mask, most = (kwargs.pop(name, None) for name in ("pixel_values", "attention_mask", "max_new_tokens"))
        refuse_others("predict_action", kwargs)
        if input_ids is None or pixels is None:
            missing = "input_ids" if input_ids is None else "pixel_values"
            raise UsageError(f"predict_action got no {missing}: pass **processor(prompt, image)")
        key, statistics = self._statistics(unnorm_key)
        if most not in (None, statistics.dims):
            raise UsageError(f"max_new_tokens={most}: an action of {key!r} has {statistics.dims} tokens; leave it out")
        if mask is not None and not bool((torch.as_tensor(mask) != 0).all()):
            raise UsageError("attention_mask hides tokens: a prompt is not padded; pass one prompt, padding=False")
        prompt = self.policy.prompter.finish(self._ids(input_ids))
        return self.policy.decide(prompt, self._pixels(pixels), key, statistics=statistics).values

    def get_action_dim(self, unnorm_key: str | None = None) -> int:
        return self._statistics(unnorm_key)[1].dims

    def get_action_stats(self, unnorm_key: str | None = None) -> dict[str, Any]:
        """The entry itself: what is changed in it, the next action is un-normalised with."""
        key, _ = self._statistics(unnorm_key)
        entry: dict[str, Any] = self.norm_stats[key]["action"]
        return entry

    @property
    def device(self) -> torch.device:
        return self.policy.network.device

    @property
    def dtype(self) -> torch.dtype:
        return self.policy.network.dtype

    def to(self, *place: Any, **options: Any) -> Model:
        """Itself, if it is there already; UsageError names how to load it elsewhere or in another type."""
        asked = Place.of(*place, **options)
        here, index = self.device.type, self.device.index or 0
        if asked.device is not None and (asked.device.type != here or (asked.device.index or 0) != index):
            raise UsageError(f"the policy is on {self.device}, not {asked.device}: load it there, with device=…")
        if asked.dtype not in (None, self.dtype):
            raise UsageError(
                f"the policy computes in {self.dtype}, not {asked.dtype}: load it with dtype='bf16' or 'fp32'"
            )
        return self

    def cuda(self, device: int | torch.device | None = None) -> Model:
        return self.to(torch.device("cuda", 0) if device is None else device)

    def cpu(self) -> Model:
        return self.to("cpu")

    def half(self) -> Model:
        return self.to(torch.float16)

    def bfloat16(self) -> Model:
        return self.to(torch.bfloat16)

    def float(self) -> Model:
        return self.to(torch.float32)

    def eval(self) -> Model:
        return self

    def train(self, mode: bool = True) -> Model:
        if mode:
            raise UsageError("a policy is not trained here: fine-tune the checkpoint, then export it")
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Model:
        return self.train(requires_grad)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"edge-vla's model has no {name!r}: {OTHERS.get(name, 'it is OpenVLA as scripts call it')}"
        )

    def __dir__(self) -> Iterator[str]:
        yield from (name for name in super().__dir__() if name not in OTHERS)

    def _statistics(self, unnorm_key: str | None) -> tuple[str, ActionStatistics]:
        """The key that is meant and its entry as it is now; a broken one is refused, others beside it are not read."""
        keys = list(self.norm_stats)
        if unnorm_key is None and len(keys) != 1:
            raise UsageError(f"norm_stats has {len(keys)} data sets: pass unnorm_key, one of {sorted(map(str, keys))}")
        key = keys[0] if unnorm_key is None else unnorm_key
        if key not in self.norm_stats:
            raise UsageError(f"unknown unnorm_key {key!r}: norm_stats has {sorted(map(str, keys))}")
        return key, Statistics({key: self.norm_stats[key]}, "norm_stats")[key]

    def _ids(self, input_ids: Tensor) -> tuple[int, ...]:
        if not isinstance(input_ids, Tensor) or input_ids.is_floating_point() or input_ids.ndim != 2:
            what = f"{input_ids.dtype} {tuple(input_ids.shape)}" if isinstance(input_ids, Tensor) else type(input_ids)
            raise UsageError(f"input_ids must be integers of shape (1, tokens), got {what}")
        if input_ids.shape[0] != 1:
            raise UsageError(f"predict_action got a batch of {input_ids.shape[0]}, expected 1: call it once per image")
        ids, rows = tuple(input_ids[0].tolist()), self.config.text_config.vocab_size
        if not ids or not all(0 <= one < rows for one in ids):
            raise UsageError(f"input_ids must be ids from 0 to {rows - 1}, and some, got {ids[:8]}")
        return ids

    def _pixels(self, pixels: Tensor) -> NDArray[np.float32]:
        """(1, C, H, W) of any floating-point type -> (C, H, W) float32 on the CPU."""
        spec = self.policy.config.spec
        expected = (1, 3 * len(spec.towers), spec.image_size, spec.image_size)
        if not isinstance(pixels, Tensor) or tuple(pixels.shape) != expected:
            what = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
            raise UsageError(f"pixel_values must be a tensor {expected}, got {what}: pass **processor(prompt, image)")
        values: NDArray[np.float32] = pixels[0].float().cpu().numpy()
        return values
