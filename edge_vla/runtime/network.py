"""The parts of a policy's network, ready to run: what loaders build and engines use.

Knows tensors and shapes. Knows nothing of files, prompts, drafts or robots, and imports no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.runtime.kernels.reference import BATCH_INVARIANT_ROWS
from edge_vla.spec import ActionSpec, PolicySpec

Best = tuple[list[int], list[float]]
"""Of each row: the bin with the largest logit, and its margin, NaN where a logit is not finite."""


class Vision(Protocol):
    @property
    def bytes(self) -> int:
        """Of its weights in memory."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, 3 x towers, H, W) float32 -> (B, patches, decoder width), valid until the next call."""


@runtime_checkable
class RowVision(Vision, Protocol):
    """A vision that fills the rows of an engine on the device, with no tensor on the host between."""

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can hold its work; else an engine runs it before the graph, on the same stream."""

    def write(self, pixels: Tensor, rows: Tensor) -> None:
        """(1, 3 x towers, H, W) float32 -> `rows` (patches, decoder width), both on the device."""


class RowDecoder(Protocol):
    """All decoder layers over a KV cache of the decoder's own kind."""

    @property
    def batch_invariant(self) -> bool:
        """Whether a row's bits depend neither on the other rows of a pass nor on their number."""

    @property
    def prefill_matches_step(self) -> bool:
        """Whether a prefill computes a row as a decode step does, up to the order of sums."""

    def cache(self, length: int) -> Any: ...

    def rows(self, x: Tensor, start: int, cache: Any, wanted: slice = ..., /) -> Tensor:
        """(1, T, width) from position `start` -> normed hidden states (1, rows wanted, width), valid until the next."""


class HeadKernel(Protocol):
    """A faster product by the head's action rows."""

    def __call__(self, hidden: Tensor, /) -> Tensor: ...

    def choose(self, hidden: Tensor, /) -> Best: ...


DecodeSteps = Callable[[Sequence[int], int, Any, int], Best]
"""Given bins, the first one's position, the cache -> the best bin after each, then as many further ones as asked."""


@dataclass(frozen=True)
class Embeddings:
    """Text rows stay on the host, memory-mapped where they come from a file; action rows live on the device."""

    table: Tensor  # (vocabulary rows, width), host
    actions: Tensor  # (bins, width), device

    @staticmethod
    def of(table: Tensor, action: ActionSpec, dtype: torch.dtype, device: torch.device) -> Embeddings:
        return Embeddings(table, table[action.first : action.end].to(device, dtype, copy=True))

    def text(self, ids: tuple[int, ...]) -> Tensor:
        """(1, T, width) on the device."""
        return self.table[list(ids)].to(self.actions.device, self.actions.dtype)[None]

    def action(self, bins: Tensor, out: Tensor) -> None:
        """Indices into the action rows (n,) -> `out` (n, width)."""
        torch.index_select(self.actions, 0, bins, out=out)


@dataclass(frozen=True)
class Head:
    """`actions` are the head's rows of the action ids, lowest id first; `full` is the whole head, if there is one."""

    actions: Tensor  # (bins, width)
    full: Tensor | None = None
    kernel: HeadKernel | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, width) -> (n, bins) float32, rounded to the working type first, as upstream does."""
        product = F.linear(hidden, self.actions) if self.kernel is None else self.kernel(hidden)
        return product.float()

    def choose(self, hidden: Tensor) -> Best:
        """(n, width) -> the best bin and the margin of each row. A row's bits depend on that row alone."""
        if self.kernel is not None:
            return self.kernel.choose(hidden)
        rows = hidden.shape[0]  # torch adds in another order where there are fewer
        logits = self.logits(F.pad(hidden, (0, 0, 0, max(0, BATCH_INVARIANT_ROWS - rows))))[:rows]
        return logits.argmax(dim=-1).tolist(), margins(logits)

    def full_logits(self, hidden: Tensor) -> Tensor:
        """(n, width) -> (n, vocabulary rows) float32."""
        assert self.full is not None, "an artifact has no full head"
        return F.linear(hidden, self.full).float()


def margins(logits: Tensor) -> list[float]:
    """(n, ids) -> how far each row's largest logit is above its second, NaN where one is not finite."""
    top = logits.topk(2, dim=-1).values
    return torch.where(logits.isfinite().all(dim=-1), top[:, 0] - top[:, 1], torch.nan).tolist()


@dataclass(frozen=True)
class Network:
    """With `decode_steps`, embeddings, decoder and head run as one call after the prefill.

    `first_token`: every cache of the decoder begins with the row of this token, so a prefill begins after it.
    """

    spec: PolicySpec
    dtype: torch.dtype
    device: torch.device
    vision: Vision
    embeddings: Embeddings
    decoder: RowDecoder
    head: Head
    chosen: Mapping[str, str]  # kernels by weight format and part
    weight_bytes: Mapping[str, int]  # by part
    decode_steps: DecodeSteps | None = None
    first_token: int | None = None

    @property
    def kernels(self) -> dict[str, str]:
        """What runs, by weight format and part, in which arithmetic and where."""
        return {**self.chosen, "arithmetic": str(self.dtype).removeprefix("torch."), "device": self.device.type}

    @property
    def action(self) -> ActionSpec:
        return self.spec.action
