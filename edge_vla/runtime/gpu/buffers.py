"""Every tensor that an action reads or writes beside the weights, allocated once for the longest prompt so far.

Graphs hold their addresses, so they never move: a shorter prompt uses their front. Knows shapes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from edge_vla.model import Cache
from edge_vla.runtime.gpu.kernels.tiles import GEMV_ROWS
from edge_vla.runtime.padding import padded
from edge_vla.spec import PolicySpec

MIN_PROMPT: Final = 48  # prompt tokens to allocate for at first


def rows_of(dims: int) -> int:
    """Rows of a pass over all dimensions but the first. Always the same, because bits may depend on the shape."""
    return padded(max(dims - 1, 1), GEMV_ROWS)


class GpuBuffers:
    """Inputs, rows, KV cache and outputs of one action at a time."""

    def __init__(self, spec: PolicySpec, prompt: int, dims: int, dtype: torch.dtype, device: torch.device) -> None:
        self.prompt, self.dims, self.patches = max(prompt, MIN_PROMPT), dims, spec.patches
        length = padded(self.prompt + spec.patches + rows_of(dims))
        width, size, pinned = spec.decoder.width, spec.image_size, device.type == "cuda"
        self.device = device
        self.pixels = torch.zeros(1, 3 * len(spec.towers), size, size, device=device)
        self.text = torch.zeros(self.prompt, width, dtype=dtype, device=device)
        self.rows = torch.zeros(length, width, dtype=dtype, device=device)
        self.cache = Cache.allocate(spec.decoder, 1, length, dtype, device)
        self.given = torch.zeros(rows_of(dims), dtype=torch.int32, device=device)
        self.given_rows = torch.zeros(rows_of(dims), width, dtype=dtype, device=device)  # their embeddings
        self.chosen = torch.zeros(2, dims, device=device)  # bins, exact in float32, over margins: one copy to the host
        self._host_pixels = torch.zeros(self.pixels.shape[1:], pin_memory=pinned)
        self._host_given = torch.zeros(self.given.shape, dtype=torch.int32, pin_memory=pinned)
        self._host_outputs = torch.zeros(2, dims, pin_memory=pinned)

    def holds(self, prompt: int, dims: int) -> bool:
        return prompt <= self.prompt and dims <= self.dims

    def see(self, pixels: Tensor) -> None:
        """Pixels to the device in one copy. The last action has ended, so nothing still reads the host's buffer."""
        self._host_pixels.copy_(pixels)
        self.pixels[0].copy_(self._host_pixels, non_blocking=True)

    def give(self, bins: Sequence[int]) -> None:
        self._host_given[: len(bins)] = torch.tensor(bins, dtype=torch.int32)
        self.given[: len(bins)].copy_(self._host_given[: len(bins)], non_blocking=True)

    @property
    def image_rows(self) -> Tensor:
        """(patches, width), in the rows: a vision writes here."""
        return self.rows[1 : 1 + self.patches]

    def splice(self, prompt: int) -> Tensor:
        """The rows, with beginning-of-sequence before the image rows and the rest of the prompt behind them."""
        rows, behind = self.rows, 1 + self.patches
        rows[:1] = self.text[:1]
        rows[behind : behind + prompt - 1] = self.text[1:prompt]
        return rows

    def outputs(self, dims: int) -> tuple[list[int], list[float]]:
        """Bins and margins in one copy: the only wait for the device."""
        self._host_outputs.copy_(self.chosen, non_blocking=True)
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        bins, margins = self._host_outputs[:, :dims].tolist()
        return [int(index) for index in bins], margins

    def clear(self) -> None:
        """Zero rows and cache in place."""
        for tensor in (self.rows, self.given_rows, self.cache.keys, self.cache.values):
            tensor.zero_()

    def bytes(self) -> dict[str, int]:
        cache = self.cache.keys.nbytes + self.cache.values.nbytes
        rest = (self.pixels, self.text, self.rows, self.given, self.given_rows, self.chosen)
        return {"keys and values": cache, "buffers": sum(tensor.nbytes for tensor in rest)}
