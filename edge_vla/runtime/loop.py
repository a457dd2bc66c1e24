"""The seven-token loop: one prefill, then one single-row pass for each further action dimension.

Knows token ids, embeddings and the static cache. Knows nothing of files, prompts, units or robots. Prompts are
padded on the right to a multiple of 16, which no row can see.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edge_vla.errors import NumericError
from edge_vla.model import Cache
from edge_vla.runtime.network import Network

PAD_TO = 16


@dataclass(frozen=True)
class Decision:
    """Token ids, and how far the best logit of each led the second."""

    tokens: tuple[int, ...]
    margins: tuple[float, ...]


class Loop:
    """Runs one network over one cache, as long as the longest prompt so far: one action at a time."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._whole: Cache | None = None

    def prefill(self, prompt: tuple[int, ...], image: Tensor, cache: Cache) -> Tensor:
        """Prompt ids and image embeddings (1, patches, width) -> hidden state of the last row (1, 1, width)."""
        return self._rows(self._sequence(prompt, image), cache)[:, -1:]

    def greedy(self, prompt: tuple[int, ...], image: Tensor, dims: int, mark: Callable[[str], None]) -> Decision:
        """The best action id at each dimension. `mark` is told when a stage is over."""
        network = self.network
        cache = self._cache(len(prompt) + image.shape[1], dims)
        hidden = self.prefill(prompt, image, cache)
        mark("prefill")
        bins = [self._best(network.head.logits(hidden[:, 0]))]
        start = len(prompt) + image.shape[1]
        for position in range(start, start + dims - 1):
            hidden = self._rows(network.embeddings.action(bins[-1][0]), cache, start=position)
            bins.append(self._best(network.head.logits(hidden[:, 0])))
        tokens = tuple(network.action.first + int(index) for index, _ in bins)
        margins = tuple(float(margin) for _, margin in bins)
        self._check(margins)
        mark("decode")
        return Decision(tokens, margins)

    def unconstrained(self, prompt: tuple[int, ...], image: Tensor, dims: int, mark: Callable[[str], None]) -> Decision:
        """Upstream's decoding: the best id of the whole vocabulary, stopping early at end-of-sequence.

        After an early stop upstream takes the last `dims` ids of prompt and answer together, so that is returned.
        """
        network = self.network
        cache = self._cache(len(prompt) + image.shape[1], dims)
        hidden = self.prefill(prompt, image, cache)
        mark("prefill")
        ids, margins = list[int](), list[float]()
        for position in range(len(prompt) + image.shape[1], len(prompt) + image.shape[1] + dims):
            token, margin = self._best(network.head.full_logits(hidden[:, 0]))
            ids.append(int(token))
            margins.append(float(margin))
            if ids[-1] == network.spec.decoder.eos or len(ids) == dims:
                break
            hidden = self._rows(network.embeddings.text((ids[-1],)), cache, start=position)
        self._check(tuple(margins))
        mark("decode")
        return Decision(tuple([*prompt, *ids][-dims:]), tuple(margins))

    def forced(self, prompt: tuple[int, ...], image: Tensor, tokens: tuple[int, ...]) -> Tensor:
        """Hidden states (dims, width) that predict each of `tokens`, given those before it. One pass."""
        given = self.network.embeddings.text(tokens[:-1]) if len(tokens) > 1 else None
        sequence = self._sequence(prompt, image)
        sequence = sequence if given is None else torch.cat([sequence, given], dim=1)
        hidden = self._rows(sequence, self._cache(sequence.shape[1], 0))[0, -len(tokens) :]
        self._check((float(hidden.float().norm()),))
        return hidden

    def _sequence(self, prompt: tuple[int, ...], image: Tensor) -> Tensor:
        text = self.network.embeddings.text(prompt)
        return torch.cat([text[:, :1], image.to(text.device, text.dtype), text[:, 1:]], dim=1)

    def _rows(self, embeddings: Tensor, cache: Cache, start: int = 0) -> Tensor:
        """Hidden states of the given rows; a prefill is padded, a decode step is not."""
        rows = embeddings.shape[1]
        padded = _padded(rows) if rows > 1 else rows
        if padded > rows:
            embeddings = torch.nn.functional.pad(embeddings, (0, 0, 0, padded - rows))
        hidden: Tensor = self.network.decoder.rows(embeddings, start, cache.first(start + padded))
        return hidden[:, :rows]

    def _cache(self, rows: int, dims: int) -> Cache:
        length = _padded(rows) + dims
        if self._whole is None or self._whole.length < length:
            network = self.network
            self._whole = Cache.allocate(network.spec.decoder, 1, length, network.dtype, network.device)
        return self._whole.first(length)

    def _best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """logits (1, n) -> index of the largest, the first of equals, and its lead over the second."""
        top = logits.topk(2, dim=-1).values[0]
        return logits.argmax(dim=-1), torch.where(logits.isfinite().all(), top[0] - top[1], torch.nan)

    def _check(self, values: tuple[float, ...]) -> None:
        if not all(map(math.isfinite, values)):
            self._whole = None  # what it left in the cache would poison the next action through 0 * NaN
            raise NumericError("the network produced a non-finite number: no action; verify the artifact's files")


def _padded(rows: int) -> int:
    return -(-rows // PAD_TO) * PAD_TO


class Stopwatch:
    """Milliseconds between marks, read after the device has finished."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.laps: dict[str, float] = {}
        self._start = self._last = self._now()

    def mark(self, stage: str) -> None:
        now = self._now()
        self.laps[stage] = (now - self._last) * 1e3
        self._last = now

    def stop(self) -> dict[str, float]:
        """All laps, and their total."""
        return {**self.laps, "total": (self._last - self._start) * 1e3}

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
