"""The seven-token loop: one prefill, then passes that verify drafts, or one row for each further action dimension.

Knows token ids, embeddings, drafts and the static cache. Knows nothing of files, prompts, units or robots. Prompts
are padded on the right to a multiple of 16, which no row can see.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from edge_vla.errors import NumericError
from edge_vla.runtime.drafts import Draft
from edge_vla.runtime.kernels.reference import BATCH_INVARIANT_ROWS
from edge_vla.runtime.network import Network, margins
from edge_vla.runtime.padding import padded

TEXTS: Final = 32  # instructions whose embeddings are kept


@dataclass(frozen=True)
class Decision:
    """Token ids, and how far the best logit of each led the second.

    `drafted` are the ids first proposed, if any; `passes` counts passes of the decoder after the prefill.
    """

    tokens: tuple[int, ...]
    margins: tuple[float, ...]
    drafted: tuple[int, ...] = ()
    passes: int = 0


class DecodeBuffers:
    """The tensors of one action at a time, made once for the longest prompt and the most dimensions so far."""

    def __init__(self, network: Network, length: int, few: int) -> None:
        self.length = length
        self.cache: Any = network.decoder.cache(length)  # of the decoder's own kind
        width = network.spec.decoder.width
        self.rows = torch.zeros(1, length, width, dtype=network.dtype, device=network.device)
        self.few = torch.zeros(1, few, width, dtype=network.dtype, device=network.device)  # of a pass
        self.bins = torch.zeros(few, dtype=torch.int64)


@dataclass
class _Answer:
    """What is known of one action: bins from the first dimension on, and how far each led."""

    dims: int
    bins: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    guesses: list[int] = field(default_factory=list)  # the network's latest word on every dimension, right or not

    @property
    def known(self) -> int:
        return len(self.bins)

    def accept(self, first: int, best: Sequence[int], margins: Sequence[float], given: Sequence[int]) -> None:
        """`best[i]` is predicted for dimension `first + i`; all dimensions before it were `given` to the network.

        A prediction counts as long as everything given before it is what is known.
        """
        best = best[: self.dims - first]
        self.guesses[first:] = best
        for dim in range(self.known, first + len(best)):
            if list(given[:dim]) != self.bins[:dim]:
                break
            self.bins.append(best[dim - first])
            self.margins.append(margins[dim - first])


class Loop:
    """Runs one network over one buffers, as long as the longest prompt so far: one action at a time."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._buffers: DecodeBuffers | None = None
        self._texts: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    def greedy(
        self,
        prompt: tuple[int, ...],
        image: Tensor,
        dims: int,
        mark: Callable[[str], None],
        draft: Draft | None = None,
        *,
        bitwise_exact: bool = False,
    ) -> Decision:
        """The best action id at each dimension, with or without a draft. `mark` is told when a stage is over.

        What a draft missed is drafted again and verified together. With `bitwise_exact`, drafted or not, tokens are the
        same to the last near-tie: a row's bits must not depend on its neighbours, so drafts wait until after the
        prefill, and where the decoder is not steady all passes have one shape. Without it they ride in the prefill,
        if that computes a row as a step does.
        """
        start = len(prompt) + image.shape[1]
        even = bitwise_exact and not self.network.decoder.batch_invariant
        reach = padded(start + _even_rows(dims))
        buffers = self._fill(prompt, image, reach, _even_rows(dims))
        answer = _Answer(dims)
        drafted = [] if draft is None else draft((), ())
        riding = drafted[: dims - 1] if not bitwise_exact and self.network.decoder.prefill_matches_step else []
        if riding:
            self._embed(riding, buffers, buffers.rows[0, start : start + len(riding)])
        hidden = self._prefill(buffers, start + len(riding), start - 1)[0]
        answer.accept(0, *self.network.head.choose(hidden), riding)
        mark("prefill")
        passes = 0
        while answer.known < dims:
            given = answer.bins + ([] if draft is None else draft(answer.bins, answer.guesses)[answer.known :])
            first = 0 if even else answer.known - 1
            inputs = given[first : dims - 1]
            if even:
                inputs = inputs + [0] * (_even_rows(dims) - len(inputs))
            further = dims - 1 - answer.known if draft is None and self.network.decode_steps is not None else 0
            best, lead = self._follow(inputs, start + first, reach, buffers, further)
            answer.accept(first + 1, best, lead, given + best[:further])
            passes += 1 + further
        self._check(answer.margins)
        mark("decode")
        names = self.network.action.first
        return Decision(
            tuple(names + index for index in answer.bins),
            tuple(answer.margins),
            tuple(names + index for index in drafted),
            passes,
        )

    def unconstrained(self, prompt: tuple[int, ...], image: Tensor, dims: int, mark: Callable[[str], None]) -> Decision:
        """Upstream's decoding: the best id of the whole vocabulary, stopping early at end-of-sequence.

        After an early stop upstream takes the last `dims` ids of prompt and answer together, so that is returned.
        """
        network, start = self.network, len(prompt) + image.shape[1]
        buffers = self._fill(prompt, image, start + dims)
        hidden = self._prefill(buffers, start, start - 1)[:, 0]
        mark("prefill")
        ids, rows = list[int](), list[Tensor]()
        for position in range(start, start + dims):
            rows.append(network.head.full_logits(hidden)[0])
            ids.append(int(rows[-1].argmax()))
            if ids[-1] == network.spec.decoder.eos or len(ids) == dims:
                break
            hidden = self._pass(network.embeddings.text((ids[-1],)), position, position + 1, buffers)[:, 0]
        best = margins(torch.stack(rows))
        self._check(best)
        mark("decode")
        return Decision(tuple([*prompt, *ids][-dims:]), tuple(best), passes=len(ids) - 1)

    def forced(self, prompt: tuple[int, ...], image: Tensor, tokens: tuple[int, ...]) -> Tensor:
        """Hidden states (dims, width) that predict each of `tokens`, given those before it. One pass."""
        start = len(prompt) + image.shape[1]
        end = start + len(tokens) - 1
        buffers = self._fill(prompt, image, end)
        if len(tokens) > 1:
            buffers.rows[:, start:end] = self.network.embeddings.text(tokens[:-1])
        hidden = self._prefill(buffers, end, start - 1)[0].clone()  # the decoder may only have lent it
        self._check((float(hidden.float().norm()),))
        return hidden

    def _fill(self, prompt: tuple[int, ...], image: Tensor, rows: int, few: int = 0) -> DecodeBuffers:
        """The buffers, at least `rows` long, with the prompt's rows in it: beginning-of-sequence, image, the rest.

        `few`: rows of the passes behind it.
        """
        length = padded(rows)
        if self._buffers is None or self._buffers.length < length or self._buffers.few.shape[1] < few:
            had = (0, 0) if self._buffers is None else (self._buffers.length, self._buffers.few.shape[1])
            self._buffers = DecodeBuffers(self.network, max(length, had[0]), max(few, had[1]))
        buffers, text, patches = self._buffers, self._text(prompt), image.shape[1]
        buffers.rows[:, :1] = text[:, :1]
        buffers.rows[:, 1 : 1 + patches] = image
        buffers.rows[:, 1 + patches : len(prompt) + patches] = text[:, 1:]
        return buffers

    def _text(self, prompt: tuple[int, ...]) -> Tensor:
        found = self._texts.pop(prompt, None)
        self._texts[prompt] = self.network.embeddings.text(prompt) if found is None else found
        if len(self._texts) > TEXTS:
            self._texts.popitem(last=False)
        return self._texts[prompt]

    def _embed(self, bins: Sequence[int], buffers: DecodeBuffers, out: Tensor) -> None:
        """Embeddings of action bins into `out` (n, width)."""
        indices = buffers.bins[: len(bins)]
        indices.numpy()[:] = bins
        self.network.embeddings.action(indices.to(self.network.device), out)

    def _prefill(self, buffers: DecodeBuffers, rows: int, first: int) -> Tensor:
        """The room's rows from position 0 on -> hidden states (1, rows - first, width) of those from `first` on."""
        length = padded(rows)
        buffers.rows[:, rows:length].zero_()
        cache = buffers.cache.first(length)
        return self.network.decoder.rows(buffers.rows[:, :length], 0, cache, slice(first, rows))

    def _pass(self, embeddings: Tensor, start: int, length: int, buffers: DecodeBuffers) -> Tensor:
        """Hidden states of rows from position `start` on, computed over the first `length` slots of the cache."""
        return self.network.decoder.rows(embeddings, start, buffers.cache.first(length))

    def _follow(
        self, bins: Sequence[int], start: int, reach: int, buffers: DecodeBuffers, further: int
    ) -> tuple[list[int], list[float]]:
        """The best bin behind each of `bins`, the first at position `start`, and how far each led.

        Where the network can `follow` by itself, then of so many `further`, each behind the one before.
        """
        if self.network.decode_steps is not None:
            return self.network.decode_steps(bins, start, buffers.cache, further)
        few = buffers.few[:, : len(bins)]
        self._embed(bins, buffers, few[0])
        return self.network.head.choose(self._pass(few, start, reach, buffers)[0])

    def _check(self, values: Sequence[float]) -> None:
        if not all(map(math.isfinite, values)):
            self._buffers = None  # what it left in the cache would poison the next action through 0 * NaN
            raise NumericError("the network produced a non-finite number: no action; verify the artifact's files")


def _even_rows(dims: int) -> int:
    return padded(dims - 1, BATCH_INVARIANT_ROWS)


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
