"""A typed ONNX graph -> the bytes of an engine, by TensorRT 10.3 to 11 or TensorRT-RTX. One code path for all.

Types come from the graph (a strongly typed network), so there are no precision flags, and no calibrator.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge_vla.errors import ArtifactError, BackendError, ResourceError, UsageError
from edge_vla.files import disk_errors, write_whole
from edge_vla.runtime.vision.graphs import INPUT, ROWS, TypedGraph
from edge_vla.runtime.vision.tensorrt.library import Library

LOG: Final = logging.getLogger(__name__)
WORKSPACE: Final = 1 << 30  # bytes that one kernel may ask for: on a Jetson the decoder has the rest
OnProgress = Callable[[str, int, int], None]
"""A phase's name, steps done, steps in all."""


@dataclass(frozen=True)
class BuildOptions:
    """`target`: a compute capability such as `sm_86`, TensorRT-RTX only; None is this machine's GPU.

    Batch is 1: an action has one image, and a range of batches costs checks and copies in every run.
    """

    target: str | None = None
    timing_cache: Path | None = None  # kept between builds; TensorRT only
    on_progress: OnProgress | None = None


def build(library: Library, graph: TypedGraph, options: BuildOptions) -> memoryview:
    """The serialized engine. ArtifactError for a graph that does not parse, BackendError where the build fails."""
    trt, log = library.module, _log(library.module)
    builder = trt.Builder(log)
    network = builder.create_network(_typed(trt))
    _parse(trt, network, graph, log)
    _end_in_rows(trt, network)
    config = builder.create_builder_config()
    config.max_aux_streams = 0  # all work on the caller's stream, so that a CUDA graph can hold it
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    _aim(library, config, options.target)
    profile, shape = builder.create_optimization_profile(), (1, *tuple(network.get_input(0).shape)[1:])
    profile.set_shape(INPUT, shape, shape, shape)
    config.add_optimization_profile(profile)
    if options.on_progress is not None:
        config.progress_monitor = _monitor(trt, options.on_progress)
    with _timing_cache(library, config, options.timing_cache):
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        message = log.last or "no reason given"
        if "memory" in message.lower():
            raise ResourceError(f"{library} ran out of memory: {message}: close other programs and build again")
        raise BackendError(f"{library} builds no engine of {graph.path.name}: {message}")
    return memoryview(plan)


def _typed(trt: Any) -> int:
    """The flags of a strongly typed network, which is all there is where the flag is gone."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def compute_capability(target: str, library: Library) -> Any:
    """`sm_86` as TensorRT-RTX names it; UsageError for one it cannot build for."""
    known = library.module.ComputeCapability
    names = [name for name in dir(known) if name.startswith("SM")]
    name = target.upper().replace("_", "").replace(".", "")
    if name not in names:
        choices = ", ".join(f"sm_{one[2:]}" for one in sorted(names, key=lambda one: int(one[2:])))
        raise UsageError(f"--target {target}: {library} builds for {choices}")
    return getattr(known, name)


def _aim(library: Library, config: Any, target: str | None) -> None:
    if target is None:
        return
    if not library.rtx:
        raise UsageError(f"--target {target}: {library} builds on the GPU that runs it; only TensorRT-RTX builds ahead")
    config.num_compute_capabilities = 1
    config.set_compute_capability(compute_capability(target, library), 0)


def _parse(trt: Any, network: Any, graph: TypedGraph, log: Any) -> None:
    parser = trt.OnnxParser(network, log)
    # The path only says where weights lie: the graph itself may lie elsewhere.
    if not parser.parse(graph.path.read_bytes(), str(graph.data.with_name(graph.path.name))):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        said = "; ".join(f"node {one.node()}: {one.desc()}" for one in errors[:2]) or log.last
        raise ArtifactError(f"{graph.path} does not parse: {said}: build with --fresh, or update TensorRT")
    if (network.num_inputs, network.num_outputs) != (1, 1) or network.get_input(0).name != INPUT:
        raise ArtifactError(f"{graph.path} is no vision graph: expected one input, {INPUT}: build with --fresh")


def _end_in_rows(trt: Any, network: Any) -> None:
    """Write bf16, the decoder's type, in place of float32: the engine's last kernel then fills image rows itself."""
    embeddings = network.get_output(0)
    network.unmark_output(embeddings)
    rows = network.add_cast(embeddings, trt.DataType.BF16).get_output(0)
    rows.name = ROWS
    network.mark_output(rows)


@contextmanager
def _timing_cache(library: Library, config: Any, path: Path | None) -> Iterator[None]:
    """Timings of earlier builds, so that a second one is shorter. TensorRT-RTX tunes on the device and keeps none."""
    if path is None or library.rtx:
        yield
        return
    config.set_timing_cache(config.create_timing_cache(path.read_bytes() if path.is_file() else b""), False)
    yield
    with disk_errors(f"write {path}"):
        write_whole(path, bytes(config.get_timing_cache().serialize()))


def _log(trt: Any) -> Any:
    """A logger that remembers the last error."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.last = message.strip().splitlines()[0] if message.strip() else self.last
            LOG.debug("%s", message)

    return Log()


def _monitor(trt: Any, on_progress: OnProgress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None or num_steps > 1:
                self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if (steps := self.steps.get(phase_name)) is not None:
                on_progress(phase_name, step + 1, steps)
            return True

        def phase_finish(self, phase_name: str) -> None:
            if (steps := self.steps.pop(phase_name, None)) is not None:
                on_progress(phase_name, steps, steps)

    return Monitor()
