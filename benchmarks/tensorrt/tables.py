"""The TensorRT studies' results as Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.markdown import percent, share, table, targets
from benchmarks.tensorrt.results import EngineBuildsResult, Int8VisionResult


def builds(result: EngineBuildsResult) -> Iterator[str]:
    yield f"{result.library}, strongly typed, batch 1, built without a GPU; no engine was run."
    yield ""
    columns = ["towers and projector", "for", "time", "processor time", "peak memory", "plan"]
    columns += ["fused attentions", "int8 linears"]
    rows = [
        (
            f"{one.policy}, {one.precision}",
            one.target,
            f"{one.seconds:.0f} s",
            f"{one.cpu_seconds:.0f} s",
            f"{one.peak_bytes / 2**30:.1f} GiB",
            f"{one.plan_bytes / 1e6:.0f} MB",
            f"{one.fused_attentions} of {one.attentions}",
            str(one.int8_linears),
        )
        for one in result.builds
    ]
    yield from table(columns, rows)
    yield ""
    yield from targets("7B shapes, random weights", result.targets)


def int8_vision(result: Int8VisionResult) -> Iterator[str]:
    both, weights, kept = result.linears
    yield (
        f"The demo policy on {result.frames} frames of {result.episodes} episodes, behind each vision, against the "
        f"same decoder behind float32 vision. Calibrated on {result.calibration_frames} other frames: {both} linears "
        f"in int8, {weights} with int8 weights alone, {kept} in 16 bits."
    )
    yield ""
    rows = [
        (one.vision, one.decoder, percent(one.embeddings_error, digits=2), share(one.tokens), share(one.actions))
        for one in result.visions
    ]
    yield from table(["vision", "decoder", "error of the embeddings", "same token", "same action"], rows)
    yield ""
    yield from targets("demo policy", result.targets)
