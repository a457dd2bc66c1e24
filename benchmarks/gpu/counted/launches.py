"""Launches of one action, counted at OpenVLA-7B's structure and a toy's widths.

A launch is a call of one of our kernels, or an operator of torch that computes or copies: one launch each, but for
splits of a library's product, which only the device shows. Widths decide no launch, so a CPU counts in seconds.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial, wraps
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu import weights
from benchmarks.gpu.configurations import CONFIGURATIONS, Configuration
from benchmarks.gpu.counted.result import LaunchRow
from edge_vla.artifact import Artifact
from edge_vla.checkpoint.random import RandomTensors
from edge_vla.runtime.gpu import load
from edge_vla.runtime.gpu.config import Kernels, Steps, kernels
from edge_vla.runtime.gpu.device import Backend
from edge_vla.runtime.gpu.engine import GpuEngine, Piece, Shape
from edge_vla.spec import OPENVLA_7B, TINY, PolicySpec

CPU: Final = torch.device("cpu")
PROMPT: Final = 32  # tokens
DIMS: Final = 7
TORCH: Final = "torch"
CHAINED: Final = ", steps as a chain"  # behind a configuration's name: not its default, which takes one launch
OF_A_CALL: Final[Mapping[str, int]] = {"choose": 2}  # launches; every other kernel's is one
FREE: Final = ("empty", "new_empty", "detach")  # operators that launch nothing though they make a tensor


def structure() -> PolicySpec:
    """OpenVLA-7B's numbers of layers and blocks."""
    towers = tuple(replace(toy, depth=real.depth) for toy, real in zip(TINY.towers, OPENVLA_7B.towers, strict=True))
    return replace(TINY, towers=towers, decoder=replace(TINY.decoder, layers=OPENVLA_7B.decoder.layers))


def rows(spec: PolicySpec) -> Iterator[LaunchRow]:
    """Each stage of an action, for each configuration that `make bench-gpu` measures."""
    source = weights.seeded("openvla-tiny", CPU)
    tensors = RandomTensors("openvla-tiny", spec, CPU)
    source = replace(source, config=replace(source.config, spec=spec), tensors=tensors)
    with tempfile.TemporaryDirectory(prefix="edge-vla-counted-") as folder:
        for configuration in CONFIGURATIONS:
            path = Path(folder, f"{configuration.bits}-{configuration.vision_bits}")
            made = Artifact(path) if path.exists() else None
            made = made or weights.write(path, source, configuration.bits, configuration.vision_bits, CPU)
            yield from of_artifact(made, configuration)
            yield from of_artifact(made, configuration, "chain")


def of_artifact(artifact: Artifact, configuration: Configuration, steps: Steps = "auto") -> Iterator[LaunchRow]:
    """`vision` ends with image and prompt in the decoder's rows, `prefill` and `step` with the ids they chose."""
    count = _Count()
    with count.engines():
        engine = load.from_artifact(artifact, torch.bfloat16, CPU, "reference", configuration.activations, steps=steps)
    title = configuration.name + (CHAINED if steps == "chain" else "")
    engine.warm([PROMPT], DIMS, ["action"])
    vision, first = count.piece(engine, "vision", 1), count.piece(engine, "action", 1)
    whole = count.piece(engine, "action", DIMS)
    stages = (("vision", 1, vision), ("prefill", 1, first - vision), ("step", DIMS - 1, whole - first))
    for stage, times, counted in stages:
        each = {name: calls // times for name, calls in sorted(counted.items())}
        yield LaunchRow(title, stage, times, {n: c for n, c in each.items() if n != TORCH}, each.get(TORCH, 0))


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators of torch while it is entered, and kernels of the engines that were loaded in `engines`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = Counter[str]()
        self._inside = False  # a kernel's reference: its operators are not the engine's

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        views = all(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)
        if not (self._inside or views or func.overloadpacket.__name__ in FREE):
            self.found[TORCH] += 1
        return func(*args, **(kwargs or {}))

    @contextmanager
    def engines(self) -> Iterator[None]:
        """Within, engines are loaded with kernels that count their calls."""

        def counted(backend: Backend) -> Kernels:
            plain = kernels(backend)
            names = [field.name for field in fields(Kernels)]
            return Kernels(**{name: self._counted(name, getattr(plain, name)) for name in names})

        with patch.object(load, "kernels", counted):
            yield

    def _counted(self, name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(kernel)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.found[name] += OF_A_CALL.get(name, 1)
            self._inside = True
            try:
                return kernel(*args, **kwargs)
            finally:
                self._inside = False

        return call

    def piece(self, engine: GpuEngine, piece: Piece, dims: int) -> Counter[str]:
        work = partial(engine.run, piece, Shape(PROMPT, dims))
        with torch.inference_mode():
            work()  # the first time, it is recorded too
            self.found.clear()
            with self:
                work()
        return Counter(self.found)
