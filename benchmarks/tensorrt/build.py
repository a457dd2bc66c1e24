"""Engines of every precision at true shapes: does TensorRT-RTX build them strongly typed, and what do they cost?

    /path/with/tensorrt_rtx/python -m benchmarks.tensorrt.build --out RESULT.json
    … --policy demo --precision int8 --target sm_86

Weights at 7B shapes are random, from their seeds, so scales are too: time, memory, size and fusions do not depend on
them, answers would. The int8 graph is built with its budget of 16-bit weights full, which is the largest plan there is.
Fused attentions are counted in the plan, which is text in places, of no documented format. Each build is a process.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from benchmarks import study
from benchmarks.study import Target
from benchmarks.tensorrt.results import EngineBuild, EngineBuildsResult
from edge_vla import typed_json
from edge_vla.device.memory import peak_resident_bytes
from edge_vla.errors import BackendError
from edge_vla.runtime.vision.precision import PRECISIONS, Precision

if TYPE_CHECKING:
    from edge_vla.export.vision_int8.ranges import Grid

LOG: Final = logging.getLogger("benchmarks.tensorrt.build")
POLICIES: Final = {"7B": "random:openvla-7b", "demo": "the demo policy"}
TARGETS: Final = ("sm_86", "sm_89")
PLAN_BYTES: Final = 0.85e9  # of int8 at 7B shapes, at most
FUSED: Final = re.compile(rb"name=\"?_gemm_mha_v")  # as TensorRT-RTX 1.7's plans name one attention's kernel
SCALE: Final = 8 / 127  # of rows that nobody measured


def prepare(policy: str, precision: Precision, folder: Path) -> Path:
    """The graph of a policy's towers in `folder`, with its weights beside it."""
    from safetensors.torch import save_file

    from edge_vla.artifact import VISION
    from edge_vla.checkpoint import open_checkpoint
    from edge_vla.checkpoint.keys import vision_keys
    from edge_vla.demo import BASE
    from edge_vla.export.vision_graph import write_typed_graph
    from edge_vla.export.vision_int8 import Choice, write_int8
    from edge_vla.export.vision_int8.choose import outliers

    checkpoint = open_checkpoint(str(BASE) if policy == "demo" else POLICIES[policy])
    spec = checkpoint.config.spec
    weights = {name: checkpoint.tensors.load(name) for name in vision_keys(spec)}
    if precision is not Precision.INT8:
        data = folder / VISION
        save_file(weights, data)
        weights.clear()
        write_typed_graph(spec, data, folder / precision.graph, precision.arithmetic)
        return folder / precision.graph
    shapes = {
        name.removesuffix(".weight"): tensor.shape
        for name, tensor in weights.items()
        if tensor.ndim == 2 and name.endswith(".weight")
    }
    harm = {name: 1.0 if name.startswith("projector.") else 1e-3 for name in shapes}
    kept, weights_only = outliers(harm, {name: shape.numel() for name, shape in shapes.items()})
    grids = {name: _grid(weights[f"{name}.weight"], name in weights_only) for name in shapes if name not in kept}
    return write_int8(spec, weights, Choice(grids, tuple(kept), {}, 0.0), folder)


def _grid(weight: Tensor, weights_only: bool) -> Grid:
    """Codes to nearest, and channels evened out in some way: what the graph holds, not what it should."""
    from edge_vla.export.vision_int8.ranges import Grid, weight_codes

    if weights_only:
        return Grid(None, None, *weight_codes(weight.float()))
    even = torch.linspace(0.5, 2.0, weight.shape[1])
    return Grid(SCALE, even, *weight_codes(weight.float() * even))


def one(policy: str, precision: Precision, target: str, graph: Path) -> EngineBuild:
    """Build in this process; torch, which comes with `edge_vla`, is about 0.25 GB of its memory."""
    from edge_vla.artifact import VISION
    from edge_vla.runtime.vision.graphs import TypedGraph
    from edge_vla.runtime.vision.tensorrt.build import BuildOptions, build
    from edge_vla.runtime.vision.tensorrt.library import RTX, library

    started, used = time.perf_counter(), time.process_time()
    plan = build(library((RTX,)), TypedGraph(graph, graph.with_name(VISION)), BuildOptions(target=target))
    text = graph.read_bytes()
    return EngineBuild(
        policy=policy,
        precision=precision.value,
        target=target,
        seconds=round(time.perf_counter() - started, 1),
        cpu_seconds=round(time.process_time() - used, 1),
        peak_bytes=peak_resident_bytes(),
        plan_bytes=plan.nbytes,
        attentions=len(re.findall(rb"\x07Softmax", text)),
        fused_attentions=len(FUSED.findall(plan)),
        int8_linears=len(re.findall(rb"\x0eQuantizeLinear", text)),
    )


def measure(policies: Sequence[str], precisions: Sequence[str], targets: Sequence[str]) -> EngineBuildsResult:
    builds = list[EngineBuild]()
    for policy in policies:
        for precision in precisions:
            with tempfile.TemporaryDirectory(prefix="edge-vla-tensorrt-") as scratch:
                graph = prepare(policy, Precision(precision), Path(scratch))
                for target in targets:
                    builds.append(_child(policy, precision, target, graph))
                    LOG.info("%s", builds[-1])
    return EngineBuildsResult(_library(), builds, reached(builds))


def reached(builds: Sequence[EngineBuild]) -> list[Target]:
    """Of the builds at 7B shapes."""
    found = [build for build in builds if build.policy == "7B"]
    int8 = [build.plan_bytes for build in found if build.precision == "int8"]
    unfused = sum(one.attentions - one.fused_attentions for one in found)
    targets = [Target("attentions left unfused", unfused, "at most", 0)]
    return [*targets, Target("bytes of the larger int8 plan", max(int8), "at most", PLAN_BYTES)] if int8 else targets


def _child(policy: str, precision: str, target: str, graph: Path) -> EngineBuild:
    words = ["--policy", policy, "--precision", precision, "--target", target, "--graph", str(graph)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tensorrt.build", *words],
        capture_output=True,
        text=True,
        check=False,
        env=study.child_environment(),
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise BackendError(f"{policy} {precision} for {target}: {last}")
    return typed_json.from_json(EngineBuild, json.loads(done.stdout.splitlines()[-1]), "build")


def _library() -> str:
    from edge_vla.runtime.vision.tensorrt.library import RTX, library

    return str(library((RTX,)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tensorrt.build", description=__doc__)
    parser.add_argument("--policy", action="append", choices=list(POLICIES))
    parser.add_argument("--precision", action="append", choices=PRECISIONS)
    parser.add_argument("--target", action="append", help=f"repeatable; default {' and '.join(TARGETS)}")
    parser.add_argument("--graph", type=Path, help=argparse.SUPPRESS)  # a child: build this one and print
    parser.add_argument("--out", type=Path, default=Path("tensorrt-towers.json"), help="result file")
    given = parser.parse_args()
    policies, precisions = given.policy or list(POLICIES), given.precision or list(PRECISIONS)
    targets = given.target or list(TARGETS)
    if given.graph is not None:
        found = one(policies[0], Precision(precisions[0]), targets[0], given.graph)
        sys.stdout.write(json.dumps(asdict(found)) + "\n")
        return
    result = measure(policies, precisions, targets)
    study.write_result(given.out, result)


if __name__ == "__main__":
    study.run(main)
