"""One action as one launch: preprocessed image in; action ids and their margins out.

    pixels -> vision -> prefill -> first id -> passes over all further dimensions, each fed with the last one's ids

Every pass computes all further dimensions at once, in one shape. A dimension is final once everything before it is:
after `dims` - 1 passes all are, whatever was guessed at first, and sooner where the guess was good. So decoding with a
draft and without one are the same computation, to the last bit; a draft only says when to stop.
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

from edge_vla.errors import BackendError, NumericError, UsageError
from edge_vla.runtime.decode import decode
from edge_vla.runtime.engine import StagedEngine
from edge_vla.runtime.gpu.buffers import GpuBuffers, rows_of
from edge_vla.runtime.gpu.decoder import KernelDecoder
from edge_vla.runtime.gpu.device import CudaDevice
from edge_vla.runtime.gpu.graph import Graphs, Recorder
from edge_vla.runtime.network import Best, Network, RowVision
from edge_vla.runtime.padding import padded
from edge_vla.runtime.types import Decision, Draft, Mark, Predictions, unmarked

Piece = Literal["action", "prefill", "draft_in_prefill", "verify", "vision"]
PIECES: Final[tuple[Piece, ...]] = ("action", "prefill", "verify", "draft_in_prefill")


@dataclass(frozen=True)
class Shape:
    """What graphs are recorded for."""

    prompt: int  # tokens
    dims: int

    def __str__(self) -> str:
        return f"{self.prompt} prompt tokens and {self.dims} dimensions"


class GpuEngine:
    """Decides one action at a time. Graphs are recorded for a prompt's length when it first comes."""

    full_vocabulary: Final = False

    def __init__(self, network: Network, decoder: KernelDecoder, cuda: CudaDevice, record: Recorder) -> None:
        self.network, self.spec, self.cuda = network, network.spec, cuda
        self.vision, self.decoder = network.vision, decoder
        self._in_graph = not isinstance(self.vision, RowVision) or self.vision.capturable
        self.graphs = Graphs(record, cuda)
        self.forced = StagedEngine(network).forced
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
        mark: Mark = unmarked,
    ) -> Decision:
        """As `types.Engine`."""
        shape = Shape(len(prompt), dims)
        with self.cuda.guard("an action"), torch.inference_mode():
            buffers = self._fit(shape)
            self._put(buffers, prompt, torch.as_tensor(pixels))
            if not self._in_graph:
                self._look(buffers)
            draft_in_prefill = self.decoder.prefill_matches_step and not bitwise_exact
            predictor = GpuPredictor(self, buffers, shape, draft_in_prefill)
            decision = decode(predictor, dims, self.spec.action.first, draft)
        mark("graph")
        return decision

    def warm(self, prompts: Iterable[int], dims: int, pieces: Sequence[Piece] = PIECES, *, longest: int = 0) -> None:
        """Record the graphs for prompts of these lengths. UsageError for more than are kept at a time."""
        lengths, never = sorted(set(prompts)), () if self.decoder.prefill_matches_step else ("draft_in_prefill",)
        pieces = [piece for piece in pieces if piece == "action" or (dims > 1 and piece not in never)]
        needed, most = len(lengths) * len(pieces), self.graphs.most
        if needed > most:
            raise UsageError(f"{len(lengths)} prompt lengths need {needed} graphs, {most} are kept: warm fewer prompts")
        with self.cuda.guard("warming up"), torch.inference_mode():
            self._fit(Shape(max([*lengths, longest]), dims))
            for length in lengths:
                shape = Shape(length, dims)
                for piece in pieces:
                    self.graphs.ready((piece, shape), partial(self._do, piece, shape))

    def bytes(self) -> dict[str, int]:
        """On the device beside the weights, by part."""
        return {} if self._buffers is None else self._buffers.bytes()

    def run(self, piece: Piece, shape: Shape) -> None:
        """One piece of an action, on what the buffers hold by now."""
        self.graphs.run((piece, shape), partial(self._do, piece, shape))

    def _do(self, piece: Piece, shape: Shape) -> None:
        """What a graph of this piece records: it reads and writes only the buffers."""
        buffers = self._buffers
        assert buffers is not None, "the buffers are allocated before any piece runs"
        if piece == "vision":  # timed alone by benchmarks, never part of an action by itself
            self._look(buffers)
            return
        if piece == "verify":
            given = shape.dims - 1
            self.network.embeddings.action(buffers.given[:given], buffers.given_rows[:given])
            self._pass(buffers, shape)
        else:
            self._prefill(buffers, shape, shape.dims - 1 if piece == "draft_in_prefill" else 0)
        if piece == "action":
            for _ in range(shape.dims - 1):
                self._pass(buffers, shape)

    def _prefill(self, buffers: GpuBuffers, shape: Shape, guesses: int) -> None:
        """Image, prompt and that many guesses -> bins 0 .. `guesses`; bin 0 replaces the first guess on the device."""
        start = self._start(shape)
        end = start + guesses
        if self._in_graph:
            self._look(buffers)
        rows = buffers.splice(shape.prompt)
        if guesses:
            self.network.embeddings.action(buffers.given[:guesses], rows[start:end])
        rows[end : padded(end)] = 0
        hidden = self.decoder.run(rows[: padded(end)], 0, buffers.cache, range(start - 1, end))
        self._choose(buffers, hidden, 0, shape)

    def _look(self, buffers: GpuBuffers) -> None:
        """Pixels to image rows, on the device."""
        if isinstance(self.vision, RowVision):
            self.vision.write(buffers.pixels, buffers.image_rows)
        else:
            buffers.image_rows.copy_(self.vision(buffers.pixels)[0])

    def _pass(self, buffers: GpuBuffers, shape: Shape) -> None:
        """The rows of the bins given for dimensions 0 .. -> bins 1 .. predicted from them, given to the next pass."""
        rows = buffers.given_rows[: rows_of(shape.dims)]
        hidden = self.decoder.run(rows, self._start(shape), buffers.cache, range(rows.shape[0]))
        self._choose(buffers, hidden[: shape.dims - 1], 1, shape)

    def _choose(self, buffers: GpuBuffers, hidden: Tensor, first: int, shape: Shape) -> None:
        """The best bins from dimension `first` on: out, and as what the next pass is given."""
        to = self.network.embeddings.actions, buffers.given, buffers.given_rows, buffers.chosen
        self.decoder.choose(hidden, self.network.head.actions, first, shape.dims - 1, *to)

    def _start(self, shape: Shape) -> int:
        """The position after image and prompt."""
        return shape.prompt + self.spec.patches

    def _fit(self, shape: Shape) -> GpuBuffers:
        """Buffers that are large enough. New ones drop all graphs, which hold the old ones' addresses."""
        buffers = self._buffers
        if buffers is None or not buffers.holds(shape.prompt, shape.dims):
            self.graphs.clear()
            self._buffers, self._text = None, ()
            embeddings = self.network.embeddings.actions
            least = (0, 0) if buffers is None else (buffers.prompt, buffers.dims)
            prompt, dims = max(shape.prompt, least[0]), max(shape.dims, least[1])
            buffers = self._buffers = GpuBuffers(self.spec, prompt, dims, embeddings.dtype, self.cuda.device)
        return buffers

    def _put(self, buffers: GpuBuffers, prompt: tuple[int, ...], pixels: Tensor) -> None:
        buffers.see(pixels)
        if prompt != self._text:
            buffers.text[: len(prompt)] = self.network.embeddings.text(prompt)[0]
            self._text = prompt

    def read(self, buffers: GpuBuffers, dims: int) -> Best:
        """Of each dimension: the best bin and its margin, after the bins that were given.

        NumericError for what is not finite, BackendError where programs of one launch did not wait for each other.
        """
        bins, margins = buffers.outputs(dims)
        if not all(map(math.isfinite, margins)):
            buffers.clear()  # what is in the cache would poison the next action through 0 * NaN
            if self.decoder.gave_up():
                raise BackendError(
                    "the programs of a decode step's one launch waited in vain for each other: no action; load with "
                    "--kernel triton/chain or triton/int8/chain, and report the GPU and the Triton version"
                )
            raise NumericError("the network produced a non-finite number: no action; verify the artifact's files")
        return bins, margins


@dataclass(slots=True)
class GpuPredictor:
    """One action on filled buffers. The host waits for the device once per call."""

    engine: GpuEngine
    buffers: GpuBuffers
    shape: Shape
    draft_in_prefill: bool

    def prefill(self, guesses: list[int]) -> Predictions:
        if not guesses:
            bins, margins = self._run("action")
            return Predictions(0, bins, margins, bins, passes=self.shape.dims - 1)
        self.buffers.give(guesses)
        if self.draft_in_prefill:
            return Predictions(0, *self._run("draft_in_prefill"), guesses, passes=0)
        bins, margins = self._run("prefill", "verify")
        return Predictions(0, bins, margins, [bins[0], *guesses[1:]], passes=1)

    def verify(self, given: list[int], known: int) -> Predictions:  # noqa: ARG002  all dimensions are computed again
        self.buffers.give(given)
        return Predictions(0, *self._run("verify"), given, passes=1)

    def _run(self, *pieces: Piece) -> Best:
        for piece in pieces:
            self.engine.run(piece, self.shape)
        return self.engine.read(self.buffers, self.shape.dims)
