"""`edge-vla build-engine`: an artifact's vision as a TensorRT engine, built on the device that runs it.

With `--chip` it is our own kernels instead, compiled ahead: `build_kernels`.
"""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_vla.commands.build_kernels import LONGEST, build_kernels
from edge_vla.errors import ArtifactError, BackendError, UsageError
from edge_vla.options import AsJson, Device, choice
from edge_vla.terminal import err, out

if TYPE_CHECKING:
    import torch

    from edge_vla.runtime.vision.precision import Precision
    from edge_vla.runtime.vision.tensorrt.library import Library


def build_engine(
    artifact: Annotated[Path, typer.Argument(help="An artifact directory.")],
    precision: Annotated[str, typer.Option(help="fp16, bf16, or int8, which is calibrated on --frames.")] = "fp16",
    frames: Annotated[Path | None, typer.Option(help="Frames to calibrate int8 on: a folder or a data set.")] = None,
    target: Annotated[
        str | None, typer.Option(help="Build ahead for a compute capability (sm_86), with TensorRT-RTX.")
    ] = None,
    device: Device = "auto",
    graph_only: Annotated[
        bool, typer.Option("--graph-only", help="Write the graph alone: what --vision onnx-cuda and onnx/int8 run.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Make graph and engine again.")] = False,
    chip: Annotated[
        str | None, typer.Option(help="Compile our own kernels ahead for a chip (sm_87), without a GPU.")
    ] = None,
    multiprocessors: Annotated[
        int | None, typer.Option(help="With --chip: how many it has (default: the most of its kind; Orin NX: 8).")
    ] = None,
    kernel: Annotated[str, typer.Option(help="With --chip: triton or triton/int8.")] = "triton",
    longest_prompt: Annotated[int, typer.Option(help="With --chip: tokens of the longest prompt.")] = LONGEST,
    as_json: AsJson = False,
) -> None:
    """Build the vision engine that `--vision tensorrt` runs, and keep it in this device's cache.

    An engine belongs to one artifact, TensorRT version, GPU and precision; another of them needs another build.
    """
    if chip is not None:
        if target is not None or frames is not None or graph_only:
            raise UsageError("--chip compiles our own kernels: leave out --target, --frames and --graph-only")
        build_kernels(artifact, chip, multiprocessors, kernel, longest_prompt, as_json=as_json)
        return
    from edge_vla.runtime.vision.precision import PRECISIONS, Precision

    wanted = Precision(choice("--precision", precision, PRECISIONS))
    if frames is not None and wanted is not Precision.INT8:
        raise UsageError(f"--frames calibrates int8, and {precision} needs no calibration: leave it out")
    _build_vision(artifact, wanted, frames, target, device, graph_only=graph_only, fresh=fresh, as_json=as_json)


def _build_vision(
    artifact: Path,
    wanted: Precision,
    frames: Path | None,
    target: str | None,
    device: str,
    *,
    graph_only: bool,
    fresh: bool,
    as_json: bool,
) -> None:
    """The graph of a precision and its engine, unless both are there and whole."""
    from edge_vla.artifact import Artifact
    from edge_vla.data import read_frames
    from edge_vla.export.device_graph import device_graph
    from edge_vla.runtime.vision.tensorrt.build import BuildOptions, build
    from edge_vla.runtime.vision.tensorrt.engine import BF16_ROWS
    from edge_vla.runtime.vision.tensorrt.plan import PlanIdentity, building, device_cache, find_plan, write_plan

    opened = Artifact(artifact)
    found = None if graph_only else _library(target)  # before minutes of calibration
    gpu = None if found is None else _gpu(found, target, device)
    folder = device_cache(opened.identity)
    recorded = read_frames(frames) if frames is not None else ()
    waits = partial(err.print, "another build of this artifact runs: waiting for it")
    with err.status("writing the graph") as status, building(folder, waits):
        place = _calibrates_on(device)
        graph = device_graph(opened, wanted, folder, recorded, fresh=fresh, device=place, on_step=err.print)
        if found is None or gpu is None:
            _say(graph.path, graph.path.stat().st_size, None, as_json)
            return
        identity = PlanIdentity(graph.identity, wanted, str(found), gpu, BF16_ROWS)
        path, started = folder / identity.name, time.perf_counter()
        if path.exists() and not fresh:
            try:
                find_plan(folder, identity, "--fresh builds it in any case")
                err.print("built already, and whole: --fresh builds it again")
                _say(path, path.stat().st_size, None, as_json)
                return
            except (ArtifactError, BackendError) as error:
                err.print(f"built again: {error}")
        options = BuildOptions(
            target=target,
            timing_cache=folder.parent / f"timing-{found.name}-{found.version}.cache",
            on_progress=lambda phase, done, steps: status.update(f"{phase} {done}/{steps}"),
        )
        plan = build(found, graph, options)
        write_plan(folder, identity, plan)
    _say(path, plan.nbytes, time.perf_counter() - started, as_json)


def _library(target: str | None) -> Library:
    from edge_vla.runtime.vision.tensorrt.build import compute_capability
    from edge_vla.runtime.vision.tensorrt.library import RTX, TENSORRT, library

    found = library((RTX,) if target is not None else (TENSORRT, RTX))
    if target is not None:
        compute_capability(target, found)
    return found


def _gpu(found: Library, target: str | None, device: str) -> str:
    """What the plan is for, as its record names it."""
    import torch

    from edge_vla.runtime.vision.tensorrt.engine import this_gpu

    if target is not None:
        return target.lower()
    if device == "cpu" or not torch.cuda.is_available():
        raise BackendError(
            f"{found} builds on the GPU that runs the engine, and torch sees none: run this on the device, or "
            "--target sm_86 with TensorRT-RTX"
        )
    return this_gpu(found, torch.device("cuda"))


def _calibrates_on(device: str) -> torch.device:
    import torch

    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def _say(path: Path, size: int, seconds: float | None, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"path": str(path), "bytes": size, "seconds": seconds}))
    else:
        took = "" if seconds is None else f", {seconds:.0f} s"
        out.print(f"{path}: {size / 1e6:.1f} MB{took}", soft_wrap=True)
