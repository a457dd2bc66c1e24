"""Every kernel that an artifact needs on a chip, compiled without one.

The engine itself is loaded on torch's device "meta", where tensors have shapes and no bytes, and warmed: each kernel is
launched with the arguments that it gets on the device, and compiled instead of run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from edge_vla.artifact import Artifact
from edge_vla.errors import BackendError
from edge_vla.runtime.gpu.ahead.driver import dry_driver
from edge_vla.runtime.gpu.ahead.triton_cache import Kernel, take
from edge_vla.runtime.gpu.config import named
from edge_vla.runtime.gpu.device import check
from edge_vla.runtime.gpu.kernels.tiles import Chip
from edge_vla.runtime.gpu.load import from_artifact
from edge_vla.runtime.padding import padded

META: Final = torch.device("meta")


def compile_kernels(
    artifact: Artifact,
    chip: Chip,
    kernel: str,
    dtype: torch.dtype,
    longest: int,
    on_kernel: Callable[[str, int], None] = lambda *_: None,
) -> list[Kernel]:
    """For prompts of up to `longest` tokens, as `--kernel` and `--dtype` ask.

    `on_kernel` is told each kernel's name and how many there are. BackendError without Triton, or where it interprets.
    """
    check("triton", META)
    _refuse_interpreter()
    found = dict[str, Kernel]()

    def kept(source: Any, metadata: Any) -> None:
        one = take(source, metadata)
        found[one.key] = one
        on_kernel(one.name.strip("_"), len(found))

    dims = sorted({one.dims for one in artifact.manifest.config.statistics.values()})
    with dry_driver(chip, kept):
        activations, steps = named(kernel)
        engine = from_artifact(artifact, dtype, META, "triton", activations, steps=steps)
        whole = engine.decoder.whole
        for way in (whole, None) if steps == "auto" and whole is not None else (whole,):  # the device tries both
            engine.decoder.whole = way
            engine.graphs.clear()
            for count in dims:
                for length in lengths(artifact.manifest.config.spec.patches, longest, count):
                    engine.warm([length], count)
    return list(found.values())


def lengths(patches: int, longest: int, dims: int) -> Sequence[int]:
    """Prompt lengths, one for each number of rows that kernels are compiled for: padded, without and with a draft."""
    of_rows = {(padded(patches + one), padded(patches + one + dims - 1)): one for one in range(1, longest + 1)}
    return sorted(of_rows.values())


def _refuse_interpreter() -> None:
    from triton import knobs

    if knobs.runtime.interpret:
        raise BackendError("Triton interprets kernels here and compiles none: unset TRITON_INTERPRET")
