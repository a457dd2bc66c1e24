"""`edge-vla build-engine --chip`: the GPU engine's kernels for a named chip, compiled without it."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Final

from edge_vla.errors import UsageError
from edge_vla.options import choice
from edge_vla.terminal import err, out

LONGEST: Final = 48  # prompt tokens: what the engine's buffers hold at first


def build_kernels(
    directory: Path, chip: str, multiprocessors: int | None, kernel: str, longest: int, *, as_json: bool
) -> None:
    """Into the artifact's device cache, beside what is there for this chip. BackendError without Triton."""
    import torch

    from edge_vla.artifact import Artifact
    from edge_vla.runtime.gpu import NAMES
    from edge_vla.runtime.gpu.ahead.build import compile_kernels
    from edge_vla.runtime.gpu.ahead.chips import chip_named, in_words
    from edge_vla.runtime.gpu.ahead.load import identity_of
    from edge_vla.runtime.gpu.ahead.store import write
    from edge_vla.runtime.vision.tensorrt.plan import building, device_cache

    wanted, kernel = chip_named(chip, multiprocessors), choice("--kernel", kernel, NAMES)
    artifact = Artifact(directory)
    spec = artifact.manifest.config.spec
    most = spec.decoder.max_positions - spec.patches
    if not 1 <= longest < most:
        raise UsageError(f"--longest-prompt {longest}: this policy has room for 1 to {most - 1} tokens")
    folder, started = device_cache(artifact.identity), time.perf_counter()
    waits = partial(err.print, "another build of this artifact runs: waiting for it")
    with err.status(f"compiling for {in_words(wanted)}") as status, building(folder, waits):
        made = compile_kernels(artifact, wanted, kernel, torch.bfloat16, longest,
                               lambda name, count: status.update(f"{count}: {name}"))  # fmt: skip
        path = write(folder, identity_of(wanted), made)
    size, seconds = sum(len(one.binary) for one in made), time.perf_counter() - started
    if as_json:
        print(json.dumps({"path": str(path), "kernels": len(made), "bytes": size, "seconds": seconds}))
    else:
        out.print(f"{path}: {len(made)} kernels, {size / 1e6:.1f} MB, {seconds:.0f} s", soft_wrap=True)
