"""The child's end of a comparison: holds one policy and does what it is told, one JSON object a line.

Run by `sides.Station` as `python -m edge_vla.bench.worker`. Standard output carries answers and nothing else:
whatever a library prints goes to standard error. Knows one policy; knows nothing of other sides.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from edge_vla.bench import latency
from edge_vla.bench.provenance import peak_memory_bytes, resident_bytes
from edge_vla.bench.systems import QUIT, Contestant
from edge_vla.data import Frame, read_frames
from edge_vla.errors import EdgeVLAError, UsageError
from edge_vla.runtime import Action, Policy, load, rounding_noise


class Acts(Protocol):
    """What is asked of a policy, ours or a peer's. `forced` gives hidden states (dims, width)."""

    def act(self, image: Image.Image, instruction: str, unnorm_key: str | None = None) -> Action: ...
    def forced(self, image: Image.Image, instruction: str, tokens: list[int]) -> torch.Tensor: ...
    def action_logits(self, hidden: torch.Tensor) -> torch.Tensor: ...
    @property
    def weight_bytes(self) -> Mapping[str, int]: ...
    @property
    def kernels(self) -> Mapping[str, str]: ...


@dataclasses.dataclass(frozen=True)
class Ours:
    """A `Policy` with the face above."""

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


def opened(contestant: Contestant) -> Acts:
    adapters = [Path(adapter) for adapter in contestant.adapters]
    if contestant.peer is not None:
        from edge_vla.bench import peers

        return peers.load(
            contestant.peer,
            contestant.path,
            adapters,
            contestant.merge_arithmetic,
            contestant.device,
            calibration=Path(contestant.calibration) if contestant.calibration else None,
        )
    return Ours(
        load(
            contestant.path,
            contestant.device,
            contestant.vision,
            dtype=contestant.dtype,
            kernel=contestant.kernel,
            adapters=adapters,
            merge_arithmetic=contestant.merge_arithmetic,
        )
    )


class Worker:
    """One policy and its frames, held in memory: a query pays for acting, not for reading files."""

    def __init__(self, contestant: Contestant, frames: Path, limit: int | None) -> None:
        started = time.perf_counter()
        self.key, self.peer = contestant.unnorm_key, contestant.peer
        self.policy = opened(contestant)
        self.ready_s = time.perf_counter() - started
        self.load_peak = peak_memory_bytes()
        self.frames = read_frames(frames)[:limit]
        self.images = [frame.open() for frame in self.frames]
        self.told: list[tuple[int, tuple[int, ...]]] = []

    def loaded(self) -> dict[str, Any]:
        started = time.perf_counter()
        self.query(0)
        return {
            "ready_s": round(self.ready_s, 3),
            "first_ms": round((time.perf_counter() - started) * 1e3, 3),
            "load_peak_bytes": self.load_peak,
            "steady_bytes": resident_bytes(),
            "weights": dict(self.policy.weight_bytes),
            "kernels": dict(self.policy.kernels),
            "threads": torch.get_num_threads(),
            "versions": self._versions(),
        }

    def _versions(self) -> dict[str, str]:
        if self.peer is None:
            return {"torch": torch.__version__}
        from edge_vla.bench import peers

        return dict(peers.versions())

    def act(self, index: int) -> Action:
        frame = self.frames[index % len(self.frames)]
        return self.policy.act(self.images[index % len(self.frames)], frame.instruction, self.key or frame.unnorm_key)

    def query(self, index: int) -> Mapping[str, float]:
        action = self.act(index)
        self.told.append((index, action.tokens))
        return action.timing_ms

    def answer(self, out: str, forced: str | None, floor: str | None) -> dict[str, Any]:
        """Free tokens, then logits and hidden states along the given tokens, hidden states along its own."""
        with self._floor(floor):
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
        return {"frames": len(free)}

    def _along(
        self, image: Image.Image, frame: Frame, own: NDArray[np.int64], given: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float16], NDArray[np.float16]]:
        hidden = self.policy.forced(image, frame.instruction, given.tolist())
        logits = self.policy.action_logits(hidden).float().cpu().numpy()
        same = np.array_equal(own, given)
        along_own = hidden if same else self.policy.forced(image, frame.instruction, own.tolist())
        return logits, hidden.float().cpu().numpy(), along_own.float().cpu().numpy()

    def _floor(self, name: str | None) -> AbstractContextManager[None]:
        if name is None or name not in CHANGES:
            return nullcontext()
        if not isinstance(self.policy, Ours):
            raise UsageError(f"a peer has no noise floor {name!r}")
        return CHANGES[name](self.policy.policy)

    def time(self, indices: list[int], period_s: float | None) -> dict[str, Any]:
        """Records of queries and their tokens; the wall time beside them tells what the harness itself costs."""
        self.told = []
        started = time.perf_counter()
        if period_s is None:
            records = latency.back_to_back(self.query, indices)
        else:
            records = latency.paced(self.query, indices, period_s)
        wall_s = time.perf_counter() - started
        tokens = [(index % len(self.frames), tokens) for index, tokens in self.told]
        return {"records": [record.to_json() for record in records], "wall_s": wall_s, "tokens": tokens}

    def warm_up(self, most_s: float) -> dict[str, Any]:
        return latency.warm_up(self.query, most_s=most_s).to_json()

    def waterfall(self, actions: int) -> dict[str, Any]:
        """Where the milliseconds of an action on the first frame go: `profile.profile`."""
        from edge_vla.bench.stage_profile import profile

        if not isinstance(self.policy, Ours):
            raise UsageError("a peer is not looked into: a waterfall is drawn of an artifact")
        frame = self.frames[0]
        return profile(self.policy.policy, self.images[0], frame.instruction, self.key or frame.unnorm_key, actions)

    def cuda(self) -> dict[str, Any]:
        if not torch.cuda.is_available():
            return {"peaks": None}
        return {
            "peaks": {
                "allocated_peak_bytes": torch.cuda.max_memory_allocated(),
                "reserved_peak_bytes": torch.cuda.max_memory_reserved(),
            }
        }

    def episodes(self, table: str, kind: str, first: int, count: int, delays_ms: list[float] | None) -> dict[str, Any]:
        from edge_vla.bench.environments import act_out

        return {"rows": act_out(self.policy, table, kind, first, count, delays_ms, self.key)}


@contextmanager
def _math_attention(policy: Policy) -> Iterator[None]:  # noqa: ARG001
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def _larger_batch(policy: Policy) -> Iterator[None]:
    """Each matrix product on eight copies of its rows: other blocks, another order of sums."""

    def widen(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:  # noqa: ARG001
        return (inputs[0].repeat(8, *[1] * (inputs[0].ndim - 1)), *inputs[1:])

    def narrow(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
        return output[: len(output) // 8]

    network = policy.network
    roots = [part for part in (network.vision, network.decoder) if isinstance(part, torch.nn.Module)]
    linears = [module for root in roots for module in root.modules() if isinstance(module, torch.nn.Linear)]
    if not linears:
        raise UsageError("this policy has no plain matrix products to widen")
    handles = [module.register_forward_pre_hook(widen) for module in linears]
    handles += [module.register_forward_hook(narrow) for module in linears]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _shaken(policy: Policy) -> AbstractContextManager[None]:
    return rounding_noise(policy.network, seed=0)


# Harmless changes to the reference. "run again" changes nothing; "float32" is another contestant.
CHANGES: Mapping[str, Callable[[Policy], AbstractContextManager[None]]] = {
    "rounding shaken": _shaken,
    "math attention": _math_attention,
    "batch of 8": _larger_batch,
}


def serve(requests: Iterator[str], reply: Callable[[dict[str, Any]], None]) -> None:
    worker: Worker | None = None
    for line in requests:
        request: dict[str, Any] = json.loads(line)
        command = request.pop("do")
        if command == QUIT:
            return
        try:
            if command == "load":
                raw = request["contestant"]
                contestant = Contestant(**{**raw, "adapters": tuple(raw["adapters"])})
                worker = Worker(contestant, Path(request["frames"]), request["limit"])
                reply(worker.loaded())
            else:
                reply(getattr(worker, command)(**request))
        except EdgeVLAError as problem:
            reply({"error": type(problem).__name__, "message": str(problem)})


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    serve(iter(partial(sys.stdin.readline), ""), reply)


if __name__ == "__main__":
    main()
