"""One action as one launch: preprocessed image in; action ids, their leads and nothing else out.

    pixels -> vision -> prefill -> first id -> passes over all further dimensions, each fed with the last one's answer

Every pass looks at all further dimensions at once, in one shape. A dimension's answer is final once everything before
it is: after `dims` - 1 passes all are, whatever was guessed at first, and sooner where the guess was good. So decoding
with a draft and without one are the same computation, to the last bit; a draft only says when to stop.
Knows token ids, graphs and static buffers. Knows nothing of files, prompts, units or robots.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_vla.errors import NumericError, UsageError
from edge_vla.runtime.decode import Decision
from edge_vla.runtime.drafts import Draft
from edge_vla.runtime.gpu.buffers import GpuBuffers, rows_of
from edge_vla.runtime.gpu.decoder import KernelDecoder
from edge_vla.runtime.gpu.device import CudaDevice
from edge_vla.runtime.gpu.graph import Graphs, Recorder
from edge_vla.runtime.network import Embeddings, Head
from edge_vla.runtime.padding import padded
from edge_vla.runtime.vision import Vision
from edge_vla.spec import PolicySpec

Piece = Literal["action", "prefill", "draft_in_prefill", "verify", "vision"]
PIECES: Final[tuple[Piece, ...]] = ("action", "prefill", "verify", "draft_in_prefill")


@dataclass(frozen=True)
class Shape:
    """What graphs are recorded for."""

    prompt: int  # tokens
    dims: int

    def __str__(self) -> str:
        return f"{self.prompt} prompt tokens and {self.dims} dimensions"


@dataclass(frozen=True)
class Answer:
    """Of each dimension: the best bin, and its lead, given the bins that were fed."""

    bins: list[int]
    margins: list[float]


class Engine:
    """Acts for one robot at a time. Buffers and graphs are made for a prompt's length when it first comes."""

    def __init__(
        self,
        spec: PolicySpec,
        vision: Vision,
        embeddings: Embeddings,
        decoder: KernelDecoder,
        head: Head,
        cuda: CudaDevice,
        record: Recorder,
    ) -> None:
        self.spec, self.cuda = spec, cuda
        self.vision, self.embeddings, self.decoder, self.head = vision, embeddings, decoder, head
        self.graphs = Graphs(record, cuda)
        self._buffers: GpuBuffers | None = None
        self._text: tuple[int, ...] = ()

    def decide(
        self,
        prompt: tuple[int, ...],
        pixels: NDArray[np.float32] | Tensor,
        dims: int,
        draft: Draft | None = None,
        *,
        bitwise_exact: bool = False,
    ) -> Decision:
        """The best action id at each dimension for pixel values (3 x towers, H, W).

        With `bitwise_exact`, drafted or not, tokens are the same to the last near-tie. Without it a draft draft_in_prefill in the
        prefill, whose shape is then another one, if that computes a row as a step does. Raises NumericError for a
        non-finite logit, ResourceError where memory runs out, DeviceLostError once the device has failed.
        """
        shape = Shape(len(prompt), dims)
        with self.cuda.guard("an action"), torch.inference_mode():
            buffers = self._fit(shape)
            self._put(buffers, prompt, torch.as_tensor(pixels))
            drafted = draft((), ()) if draft is not None and dims > 1 else []
            if draft is None or not drafted:
                self.run("action", shape)
                answer, passes = self._read(buffers, dims), dims - 1
            else:
                draft_in_prefill = self.decoder.prefill_matches_step and not bitwise_exact
                answer, passes = self._verified(buffers, shape, draft, drafted, draft_in_prefill)
        first = self.spec.action.first
        names = tuple(first + index for index in answer.bins)
        return Decision(names, tuple(answer.margins), tuple(first + index for index in drafted), passes)

    def warm(self, prompts: Iterable[int], dims: int, pieces: Sequence[Piece] = PIECES) -> None:
        """Record the graphs for prompts of these lengths, so that no action waits for it: those that can be asked for.

        UsageError for more than are kept at a time.
        """
        lengths, never = sorted(set(prompts)), () if self.decoder.prefill_matches_step else ("draft_in_prefill",)
        pieces = [piece for piece in pieces if piece == "action" or (dims > 1 and piece not in never)]
        needed, most = len(lengths) * len(pieces), self.graphs.most
        if needed > most:
            raise UsageError(f"{len(lengths)} prompt lengths need {needed} graphs, {most} are kept: warm fewer prompts")
        with self.cuda.guard("warming up"), torch.inference_mode():
            self._fit(Shape(max(lengths), dims))
            for length in lengths:
                shape = Shape(length, dims)
                for piece in pieces:
                    self.graphs.ready((piece, shape), partial(self._do, piece, shape))

    def bytes(self) -> dict[str, int]:
        """On the device beside the weights, by part."""
        return {} if self._buffers is None else self._buffers.bytes()

    def _verified(
        self, buffers: GpuBuffers, shape: Shape, draft: Draft, drafted: Sequence[int], draft_in_prefill: bool
    ) -> tuple[Answer, int]:
        """Guess, look, keep what holds: the host waits for the device once a pass."""
        dims, given = shape.dims, list(drafted[: shape.dims - 1])
        buffers.give(given)
        if draft_in_prefill:
            self.run("draft_in_prefill", shape)
        else:
            self.run("prefill", shape)  # it puts the first answer in the place of the first guess
            self.run("verify", shape)
        answer, passes = self._read(buffers, dims), int(not draft_in_prefill)
        given[0] = given[0] if draft_in_prefill else answer.bins[0]
        while (known := 1 + _agreeing(given, answer.bins)) < dims:
            bins = answer.bins
            given = [*bins[:known], *draft(bins[:known], bins)[known:]][: dims - 1]
            buffers.give(given)
            self.run("verify", shape)
            answer, passes = self._read(buffers, dims), passes + 1
        return answer, passes

    def run(self, piece: Piece, shape: Shape) -> None:
        """One piece of an action, on what the buffers hold by now."""
        self.graphs.run((piece, shape), partial(self._do, piece, shape))

    def _do(self, piece: Piece, shape: Shape) -> None:
        """What a graph of this piece records: reads and writes the buffers and nothing else."""
        buffers = self._buffers
        assert buffers is not None, "the buffers are allocated before any piece runs"
        if piece == "vision":  # alone it serves nobody but a clock
            buffers.splice(self.vision(buffers.pixels)[0], shape.prompt)
            return
        if piece == "verify":
            self._pass(buffers, shape)
        else:
            self._prefill(buffers, shape, shape.dims - 1 if piece == "draft_in_prefill" else 0)
        if piece == "action":
            for _ in range(shape.dims - 1):
                self._pass(buffers, shape)
                buffers.given[1 : shape.dims - 1] = buffers.bins[1 : shape.dims - 1]
        buffers.publish()

    def _prefill(self, buffers: GpuBuffers, shape: Shape, riding: int) -> None:
        """Image, prompt and `riding` guesses -> bins 0 .. `riding`."""
        start = self._start(shape)
        end = start + riding
        rows = buffers.splice(self.vision(buffers.pixels)[0], shape.prompt)
        if riding:
            rows[start:end] = self.embeddings.actions[buffers.given[:riding]]
        rows[end : padded(end)] = 0
        hidden = self.decoder.run(rows[: padded(end)], 0, buffers.cache, range(start - 1, end))
        self._choose(buffers, hidden, 0)
        buffers.given[:1] = buffers.bins[:1]

    def _pass(self, buffers: GpuBuffers, shape: Shape) -> None:
        """The bins given for dimensions 0 .. -> bins 1 .. of the answer."""
        rows = self.embeddings.actions[buffers.given[: rows_of(shape.dims)]]
        hidden = self.decoder.run(rows, self._start(shape), buffers.cache, range(rows.shape[0]))
        self._choose(buffers, hidden[: shape.dims - 1], 1)

    def _choose(self, buffers: GpuBuffers, hidden: Tensor, first: int) -> None:
        """The best bins, into the buffers from dimension `first` on."""
        dims = slice(first, first + hidden.shape[0])
        buffers.bins[dims], buffers.margins[dims] = self.decoder.choose(
            hidden, self.head.actions, self.embeddings.actions
        )

    def _start(self, shape: Shape) -> int:
        """The position after image and prompt."""
        return shape.prompt + self.spec.patches

    def _fit(self, shape: Shape) -> GpuBuffers:
        """The buffers, large enough. A larger one leaves no graph: they know the old one's addresses."""
        buffers = self._buffers
        if buffers is None or not buffers.holds(shape.prompt, shape.dims):
            self.graphs.clear()
            self._buffers, self._text = None, ()
            embeddings = self.embeddings.actions
            least = (0, 0) if buffers is None else (buffers.prompt, buffers.dims)
            prompt, dims = max(shape.prompt, least[0]), max(shape.dims, least[1])
            buffers = self._buffers = GpuBuffers(self.spec, prompt, dims, embeddings.dtype, self.cuda.device)
        return buffers

    def _put(self, buffers: GpuBuffers, prompt: tuple[int, ...], pixels: Tensor) -> None:
        buffers.see(pixels)
        if prompt != self._text:
            buffers.text[: len(prompt)] = self.embeddings.text(prompt)[0]
            self._text = prompt

    def _read(self, buffers: GpuBuffers, dims: int) -> Answer:
        bins, margins = buffers.answer(dims)
        if not all(map(math.isfinite, margins)):
            buffers.clear()  # what is in the cache would poison the next action through 0 * NaN
            raise NumericError("the network produced a non-finite number: no action; verify the artifact's files")
        return Answer(bins, margins)


def _agreeing(given: Sequence[int], bins: Sequence[int]) -> int:
    """How many guesses, from the first on, are what the network says there."""
    return next((i for i, (guess, said) in enumerate(zip(given, bins, strict=False)) if guess != said), len(given))
