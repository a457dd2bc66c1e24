"""python -m tests.runtime.gpu.ahead_run ARTIFACT sm_87: a robot's side of kernels compiled ahead, without the robot.

Triton's own files get another hash, as on another machine; kernels are installed; then the engine launches its kernels
on the CPU's tensors under the driver of the counted table. Prints which of them Triton found in its cache.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import torch

from benchmarks.gpu.counted.driver import compiling_for
from edge_vla.artifact import Artifact
from edge_vla.runtime.gpu import load
from edge_vla.runtime.gpu.ahead.chips import chip_named
from edge_vla.runtime.gpu.ahead.load import identity_of
from edge_vla.runtime.gpu.ahead.store import find
from edge_vla.runtime.gpu.ahead.triton_cache import put
from edge_vla.runtime.gpu.config import Steps
from edge_vla.runtime.vision.tensorrt.plan import device_cache

CPU = torch.device("cpu")


def launches(artifact: Artifact, name: str) -> dict[str, Any]:
    from triton import knobs

    hit, missed = list[str](), list[str]()

    def listener(*, src: Any, cache_hit: bool, **_: Any) -> None:
        (hit if cache_hit else missed).append(src.name)

    chip = chip_named(name)
    for one in find(device_cache(artifact.identity), identity_of(chip), "no command"):
        put(one)
    knobs.compilation.listener = listener
    unread = patch("benchmarks.gpu.counted.driver.read")  # no disassembly of every launch
    with unread, compiling_for(chip), patch.object(load, "check"), torch.inference_mode():
        for steps in get_args(Steps):
            engine = load.from_artifact(artifact, torch.bfloat16, CPU, steps=steps)
            for prompt in (3, 11, 20):
                engine.warm([prompt], 7)
    return {"hit": len(hit), "missed": missed}


if __name__ == "__main__":
    with patch("triton.runtime.cache.triton_key", lambda: "of another machine"):
        sys.stdout.write(json.dumps(launches(Artifact(Path(sys.argv[1])), sys.argv[2])) + "\n")
