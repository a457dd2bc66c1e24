"""The staged engine: vision, prefill and decode one after the other, each timed, on any network and device.

Knows token ids, embeddings, the KV cache and its buffers. Knows nothing of files, prompts' text, units or robots.
Prompts are padded on the right to a multiple of 16, which no row can see.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_vla.errors import NumericError
from edge_vla.runtime.decode import decode
from edge_vla.runtime.kernels.reference import BATCH_INVARIANT_ROWS
from edge_vla.runtime.network import Best, Network, margins
from edge_vla.runtime.padding import padded
from edge_vla.runtime.types import Decision, Draft, Mark, Predictions, unmarked

TEXTS: Final = 32  # prompts whose embeddings are kept


class DecodeBuffers:
    """The tensors of one action, made once for the longest prompt and the most dimensions so far.

    `begun` rows of every prompt are in the cache already, and stay there.
    """

    def __init__(self, network: Network, length: int, step_rows: int, begun: int) -> None:
        self.length, self.step_rows, self.begun = length, step_rows, begun
        self.cache: Any = network.decoder.cache(length)  # of the decoder's own kind
        width = network.spec.decoder.width
        self.rows = torch.zeros(1, length, width, dtype=network.dtype, device=network.device)
        self.steps = torch.zeros(1, step_rows, width, dtype=network.dtype, device=network.device)
        self.bins = torch.zeros(step_rows, dtype=torch.int64)


class StagedEngine:
    """One action at a time. With `full_vocabulary`, tokens are chosen among all ids of the network's full head."""

    def __init__(self, network: Network, full_vocabulary: bool = False) -> None:
        self.network, self.full_vocabulary = network, full_vocabulary
        self._buffers: DecodeBuffers | None = None
        self._text = lru_cache(TEXTS)(network.embeddings.text)

    def decide(
        self,
        prompt: tuple[int, ...],
        pixels: NDArray[np.float32],
        dims: int,
        draft: Draft | None = None,
        *,
        bitwise_exact: bool = False,
        mark: Mark = unmarked,
    ) -> Decision:
        image = self.network.vision(torch.from_numpy(pixels)[None])
        mark("vision")
        if self.full_vocabulary:
            return self._decode_full_vocabulary(prompt, image, dims, mark)
        return self.decode(prompt, image, dims, draft, bitwise_exact=bitwise_exact, mark=mark)

    def warm(self, prompts: Iterable[int], dims: int, *, longest: int = 0) -> None:
        """Nothing is recorded ahead of an action."""

    def decode(
        self,
        prompt: tuple[int, ...],
        image: Tensor,
        dims: int,
        draft: Draft | None = None,
        *,
        bitwise_exact: bool = False,
        mark: Mark = unmarked,
    ) -> Decision:
        """`decide`, from image embeddings (1, patches, width) on."""
        start = len(prompt) + image.shape[1]
        step_rows = padded(dims - 1, BATCH_INVARIANT_ROWS)
        length = padded(start + step_rows)
        buffers = self._fill(prompt, image, length, step_rows)
        predictor = StagedPredictor(self.network, buffers, start, length, dims, bitwise_exact, mark)
        decision = decode(predictor, dims, self.network.action.first, draft)
        self._check(decision.margins)
        mark("decode")
        return decision

    def forced(self, prompt: tuple[int, ...], image: Tensor, tokens: tuple[int, ...]) -> Tensor:
        """Hidden states (dims, width) that predict each of `tokens`, in one pass."""
        start = len(prompt) + image.shape[1]
        end = start + len(tokens) - 1
        buffers = self._fill(prompt, image, end)
        if len(tokens) > 1:
            buffers.rows[:, start:end] = self.network.embeddings.text(tokens[:-1])
        hidden = prefill(self.network, buffers, end, start - 1).clone()  # the decoder reuses its output
        self._check((float(hidden.float().norm()),))
        return hidden

    def _decode_full_vocabulary(self, prompt: tuple[int, ...], image: Tensor, dims: int, mark: Mark) -> Decision:
        """Upstream's decoding: the best id of the whole vocabulary, stopping early at end-of-sequence.

        After an early stop upstream takes the last `dims` ids of prompt and answer together, so that is returned.
        """
        network, start = self.network, len(prompt) + image.shape[1]
        buffers = self._fill(prompt, image, start + dims)
        hidden = prefill(network, buffers, start, start - 1)
        mark("prefill")
        ids, logits = list[int](), list[Tensor]()
        for position in range(start, start + dims):
            logits.append(network.head.full_logits(hidden)[0])
            ids.append(int(logits[-1].argmax()))
            if ids[-1] == network.spec.decoder.eos or len(ids) == dims:
                break
            row = network.embeddings.text((ids[-1],))
            hidden = network.decoder.rows(row, position, buffers.cache.first(position + 1))[0]
        found = margins(torch.stack(logits))
        self._check(found)
        mark("decode")
        return Decision(tuple([*prompt, *ids][-dims:]), tuple(found), passes=len(ids) - 1)

    def _fill(self, prompt: tuple[int, ...], image: Tensor, length: int, step_rows: int = 0) -> DecodeBuffers:
        """Buffers at least this long, with the prompt's rows in them: beginning-of-sequence, image, the rest."""
        begun = int(prompt[0] == self.network.first_token)
        old = self._buffers if self._buffers is not None and self._buffers.begun == begun else None
        had = (0, 0) if old is None else (old.length, old.step_rows)
        need = max(padded(length), had[0]), max(step_rows, had[1])
        self._buffers = old if old is not None and need == had else DecodeBuffers(self.network, *need, begun)
        rows, text, patches = self._buffers.rows, self._text(prompt), image.shape[1]
        rows[:, :1] = text[:, :1]
        rows[:, 1 : 1 + patches] = image
        rows[:, 1 + patches : len(prompt) + patches] = text[:, 1:]
        return self._buffers

    def _check(self, values: Sequence[float]) -> None:
        if not all(map(math.isfinite, values)):
            self._buffers = None  # what is in the cache would poison the next action through 0 * NaN
            raise NumericError("the network produced a non-finite number: no action; verify the artifact's files")


@dataclass(slots=True)
class StagedPredictor:
    """One action's passes over filled buffers. `start` is the position after image and prompt.

    Bits are exact where no draft is in the prefill and, unless the decoder is batch-invariant, where all passes have
    one shape.
    """

    network: Network
    buffers: DecodeBuffers
    start: int
    length: int  # of the cache in every pass: bits may depend on it
    dims: int
    bitwise_exact: bool
    mark: Mark

    def prefill(self, guesses: list[int]) -> Predictions:
        given = guesses if not self.bitwise_exact and self.network.decoder.prefill_matches_step else []
        if given:
            self._embed(given, self.buffers.rows[0, self.start : self.start + len(given)])
        hidden = prefill(self.network, self.buffers, self.start + len(given), self.start - 1)
        found = Predictions(0, *self.network.head.choose(hidden), given, passes=0)
        self.mark("prefill")
        return found

    def verify(self, given: list[int], known: int) -> Predictions:
        if self.bitwise_exact and not self.network.decoder.batch_invariant:
            inputs = given + [0] * (padded(self.dims - 1, BATCH_INVARIANT_ROWS) - len(given))
            return Predictions(1, *self._pass(inputs, self.start), given, passes=1)
        inputs, start = given[known - 1 :], self.start + known - 1
        if self.network.decode_steps is None:
            return Predictions(known, *self._pass(inputs, start), given, passes=1)
        further = self.dims - 1 - known if len(given) == known else 0
        bins, found = self.network.decode_steps(inputs, start, self.buffers.cache, further)
        return Predictions(known, bins, found, given + bins[:further], passes=1 + further)

    def _pass(self, bins: list[int], start: int) -> Best:
        """What follows each of `bins`, the first at position `start`."""
        rows = self.buffers.steps[:, : len(bins)]
        self._embed(bins, rows[0])
        hidden = self.network.decoder.rows(rows, start, self.buffers.cache.first(self.length))
        return self.network.head.choose(hidden[0])

    def _embed(self, bins: list[int], out: Tensor) -> None:
        """Embeddings of action bins into `out` (n, width)."""
        indices = self.buffers.bins[: len(bins)]
        indices.numpy()[:] = bins
        self.network.embeddings.action(indices.to(self.network.device), out)


def prefill(network: Network, buffers: DecodeBuffers, rows: int, first: int) -> Tensor:
    """The buffers' first `rows` rows -> hidden states (rows - first, width) of those from `first` on."""
    length, begun = padded(rows), buffers.begun
    buffers.rows[:, rows:length].zero_()
    wanted = slice(first - begun, rows - begun)
    return network.decoder.rows(buffers.rows[:, begun:length], begun, buffers.cache.first(length), wanted)[0]
