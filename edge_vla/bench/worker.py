"""The worker's end: a process that holds one policy and answers one request a line.

Run by `systems.WorkerProcess` as `python -m edge_vla.bench.worker`. Standard output carries replies and nothing else:
whatever a library prints goes to standard error. It may run in a peer's own Python, so neither this file nor what it
imports needs more than the run side does. Knows one policy; knows nothing of other systems.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from edge_vla.bench import floors, messages, schedule
from edge_vla.bench.messages import System
from edge_vla.bench.result import CudaMemory
from edge_vla.data import Frame, read_frames
from edge_vla.device.memory import peak_resident_bytes
from edge_vla.errors import EdgeVLAError, UsageError
from edge_vla.model.widened import widened, widening_pays
from edge_vla.runtime import Action, Policy, load


class MeasuredPolicy(Protocol):
    """What is measured of a policy, ours or a peer's. `forced` gives hidden states (dims, width)."""

    def act(self, image: Image.Image, instruction: str, unnorm_key: str | None = None) -> Action: ...
    def forced(self, image: Image.Image, instruction: str, tokens: list[int]) -> torch.Tensor: ...
    def action_logits(self, hidden: torch.Tensor) -> torch.Tensor: ...
    @property
    def weight_bytes(self) -> Mapping[str, int]: ...
    @property
    def kernels(self) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class OwnPolicy:
    """A `Policy` of this package as a MeasuredPolicy."""

    policy: Policy

    def act(self, image: Image.Image, instruction: str, unnorm_key: str | None = None) -> Action:
        return self.policy.act(image, instruction, unnorm_key)

    def forced(self, image: Image.Image, instruction: str, tokens: list[int]) -> torch.Tensor:
        return self.policy.forced(image, instruction, tokens)

    def action_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.policy.network.head.logits(hidden)

    @property
    def weight_bytes(self) -> Mapping[str, int]:
        return self.policy.network.weight_bytes

    @property
    def kernels(self) -> Mapping[str, str]:
        return self.policy.network.kernels


def load_system(system: System) -> MeasuredPolicy:
    """The policy of a system, ready to act."""
    adapters = [Path(adapter) for adapter in system.adapters]
    if system.peer is not None:
        from edge_vla.bench import peers

        calibration = Path(system.calibration) if system.calibration else None
        return peers.load(
            system.peer,
            system.path,
            adapters,
            system.merge_arithmetic,
            system.device,
            calibration=calibration,
            prompt=system.prompt,
            statistics=system.statistics,
            preprocess=system.preprocess,
        )
    return OwnPolicy(
        load(
            system.path,
            system.device,
            system.vision,
            dtype=system.dtype,
            kernel=system.kernel,
            adapters=adapters,
            merge_arithmetic=system.merge_arithmetic,
            prompt=system.prompt,
            statistics=system.statistics,
            preprocess=system.preprocess,
        )
    )


class Worker:
    """One policy and its frames, held in memory: a query pays for acting, not for reading files."""

    def __init__(self, system: System, frames: Path, limit: int | None = None) -> None:
        started = time.perf_counter()
        self.system, self.policy = system, load_system(system)
        self.ready_s = time.perf_counter() - started
        self.load_peak_bytes = peak_resident_bytes()
        self.frames = read_frames(frames)[:limit]
        self.images = [frame.open() for frame in self.frames]
        self.tokens: list[tuple[int, tuple[int, ...]]] = []  # of every query since the last `time`

    def first_action(self) -> messages.Loaded:
        started = time.perf_counter()
        self.query(0)
        return messages.Loaded(
            ready_s=round(self.ready_s, 3),
            first_ms=round((time.perf_counter() - started) * 1e3, 3),
            load_peak_bytes=self.load_peak_bytes,
            weights=dict(self.policy.weight_bytes),
            kernels=dict(self.policy.kernels),
            versions=self._versions(),
        )

    def _versions(self) -> dict[str, str]:
        if self.system.peer is None:
            return {"torch": torch.__version__}
        from edge_vla.bench import peers

        return peers.versions()

    def act(self, index: int) -> Action:
        frame, image = self.frames[index], self.images[index]
        return self.policy.act(image, frame.instruction, self.system.unnorm_key or frame.unnorm_key)

    def query(self, index: int) -> Mapping[str, float]:
        """Act on a frame, counted round the folder; returns milliseconds by stage."""
        index %= len(self.frames)
        action = self.act(index)
        self.tokens.append((index, action.tokens))
        return action.timing_ms

    def predict(self, out: str, forced: str | None, floor: str | None) -> None:
        """Free-running tokens, then logits and hidden states along the given tokens, hidden states along its own."""
        with self._change(floor):
            actions = [self.act(index) for index in range(len(self.frames))]
            if len({len(action.tokens) for action in actions}) > 1:
                raise UsageError("the frames' data sets have actions of different lengths: bench one --unnorm-key")
            free = np.array([action.tokens for action in actions], dtype=np.int64)
            given = np.load(forced)["free"] if forced else free
            rows = [self._along(*row) for row in zip(self.images, self.frames, free, given, strict=True)]
        np.savez(
            out,
            free=free,
            values=np.stack([action.values for action in actions]),
            logits=np.stack([row[0] for row in rows]),
            forced_hidden=np.stack([row[1] for row in rows]),
            free_hidden=np.stack([row[2] for row in rows]),
        )

    def _along(
        self, image: Image.Image, frame: Frame, own: NDArray[np.int64], given: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float16], NDArray[np.float16]]:
        hidden = self.policy.forced(image, frame.instruction, given.tolist())
        logits = self.policy.action_logits(hidden).float().cpu().numpy()
        same = np.array_equal(own, given)
        along_own = hidden if same else self.policy.forced(image, frame.instruction, own.tolist())
        return logits, hidden.float().cpu().numpy(), along_own.float().cpu().numpy()

    def _change(self, floor: str | None) -> AbstractContextManager[None]:
        if floor is None or floor not in floors.CHANGES:
            return nullcontext()
        return floors.CHANGES[floor](self._own_policy(f"a noise floor ({floor})"))

    def _fast_products(self) -> AbstractContextManager[None]:
        """For episodes, where nothing is timed: a thousand actions in a bf16 that torch emulates take minutes."""
        if not isinstance(self.policy, OwnPolicy):
            return nullcontext()
        network = self.policy.policy.network
        parts = [part for part in (network.vision, network.decoder) if isinstance(part, torch.nn.Module)]
        return widened(*parts) if widening_pays(network.dtype, network.device) else nullcontext()

    def _own_policy(self, what: str) -> Policy:
        if not isinstance(self.policy, OwnPolicy):
            raise UsageError(f"{what} is measured of artifacts and the reference only, got the peer {self.system.peer}")
        return self.policy.policy

    def time(self, indices: list[int], period_s: float | None) -> messages.Timed:
        self.tokens = []
        if period_s is None:
            records = schedule.back_to_back(self.query, indices)
        else:
            records = schedule.paced(self.query, indices, period_s)
        return messages.Timed(records, self.tokens, _cuda_peaks())

    def respond(self, request: messages.Message) -> messages.Reply:
        match request:
            case messages.Predict(out, forced, floor):
                self.predict(out, forced, floor)
                return messages.Done()
            case messages.WarmUpFor(max_s):
                return schedule.warm_up(self.query, max_s)
            case messages.Time(indices, period_s):
                return self.time(indices, period_s)
            case messages.ProfileStages(actions):
                from edge_vla.bench.stage_profile import stage_profile

                frame, policy = self.frames[0], self._own_policy("a stage profile")
                key = self.system.unnorm_key or frame.unnorm_key
                return stage_profile(policy, self.images[0], frame.instruction, key, actions)
            case messages.RunEpisodes(environment, kind, first, count, delays_ms):
                from edge_vla.bench.environments import resolve

                key = self.system.unnorm_key
                with self._fast_products():
                    return messages.Episodes(resolve(environment).run(self.policy, kind, first, count, delays_ms, key))
            case _:
                raise AssertionError(f"no such request: {request}")


def _cuda_peaks() -> CudaMemory | None:
    if not torch.cuda.is_available():
        return None
    return CudaMemory(
        allocated_peak_bytes=torch.cuda.max_memory_allocated(),
        reserved_peak_bytes=torch.cuda.max_memory_reserved(),
    )


def serve(lines: Iterable[str], write: Callable[[str], object]) -> None:
    """Reply to every request until the input ends. The first must be Load."""
    worker: Worker | None = None
    for line in lines:
        request = messages.decode(line)
        reply: messages.Message
        try:
            if isinstance(request, messages.Load):
                worker = Worker(request.system, Path(request.frames), request.limit)
                reply = worker.first_action()
            else:
                assert worker is not None, "the first request must be Load"
                reply = worker.respond(request)
        except EdgeVLAError as problem:
            reply = messages.Failure(type(problem).__name__, str(problem))
        write(messages.encode(reply))


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)  # line by line
    os.dup2(2, 1)
    serve(sys.stdin, replies.write)


if __name__ == "__main__":
    main()
