"""Does int8 vision change the demo policy's tokens? The Q/DQ graph in ONNX Runtime, in front of one decoder.

    python -m benchmarks.tensorrt.int8_vision --out RESULT.json

Every vision sees the same frames of the policy's own evaluation episodes, and the same decoder follows: in float32,
which shows what vision alone does, and in bf16, as policies run, which turns the last bit of an embedding into other
tokens by itself. The reference is vision in float32; bf16 vision is the floor: what the policy runs with today. The
int8 graph is calibrated on the expert's episodes of the calibration split. Beside it stands what tools do by default:
all linears, largest values.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import study
from benchmarks.demo_policy import episodes
from benchmarks.study import Target
from benchmarks.tensorrt.results import Int8VisionResult, VisionTokens
from edge_vla.artifact import VISION
from edge_vla.bench.statistics import Clustered
from edge_vla.data import Frame
from edge_vla.demo import BASE
from edge_vla.export import Recipe, export
from edge_vla.export.vision_graph import write_typed_graph
from edge_vla.export.vision_int8 import Choice, choose, write_int8
from edge_vla.export.vision_int8.ranges import absmax_grid
from edge_vla.export.vision_int8.rows import input_rows, linears
from edge_vla.openvla import preprocess
from edge_vla.runtime import Policy, load
from edge_vla.runtime.engine import StagedEngine
from edge_vla.runtime.vision.onnx import OnnxVision
from edge_vla.runtime.vision.precision import Precision
from edge_vla.runtime.vision.towers import TorchVision, torch_vision

LOG: Final = logging.getLogger("benchmarks.tensorrt.int8_vision")
CPU: Final = torch.device("cpu")
DECODERS: Final = ("fp32", "bf16")
FLOOR: Final = "bf16 (the floor)"
OURS: Final = "int8"
NEARER: Final = 0.6  # of the default's error of the embeddings, at most
LOST: Final = 0.02
Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Run:
    """(frames, patches, width), and by the decoder's arithmetic (frames, dimensions)."""

    embeddings: Tensor
    tokens: Mapping[str, Tokens]


class Study:
    """The demo policy, and the frames that every vision sees."""

    def __init__(self, scratch: Path, frames: int, calibration: int) -> None:
        self.artifact = export(BASE, scratch / "artifact", Recipe(bits=16))
        self.policies: dict[str, Policy] = {
            dtype: load(self.artifact.directory, "cpu", dtype=dtype, check=False) for dtype in DECODERS
        }
        self.config = self.artifact.manifest.config
        recorded = episodes.frames("world1-policy", "evaluation", scratch / "evaluation")
        self.frames = recorded[:: max(1, len(recorded) // frames)][:frames]
        expert = episodes.frames("world1-expert", "calibration", scratch / "calibration")
        self.calibration = [self.pixels(one) for one in expert[:: max(1, len(expert) // calibration)][:calibration]]
        self.exact: TorchVision = torch_vision(self.config.spec, self.weights, torch.float32, CPU)
        self.scratch = scratch

    @property
    def weights(self) -> dict[str, Tensor]:
        return self.artifact.tensors(VISION)

    def pixels(self, frame: Frame) -> Tensor:
        """(1, 3 x towers, H, W)."""
        return torch.from_numpy(np.ascontiguousarray(preprocess(frame.open(), self.config.image)))[None]

    def choices(self) -> tuple[Choice, Choice]:
        """Ours, and the largest value of every linear."""
        rows, modules = input_rows(self.exact, self.calibration, len(self.calibration)), linears(self.exact)
        plain = {name: absmax_grid(rows[name], module.weight.data) for name, module in modules.items()}
        return choose(self.exact, self.calibration, LOG.info), Choice(plain, (), {}, 0.0)

    def visions(self, ours: Choice, plain: Choice) -> Iterator[tuple[str, TorchVision | OnnxVision]]:
        spec, folder = self.config.spec, self.artifact.directory
        yield FLOOR, torch_vision(spec, self.weights, torch.bfloat16, CPU)
        write_typed_graph(spec, folder / VISION, folder / Precision.FP16.graph, Precision.FP16.arithmetic)
        yield "fp16", OnnxVision(folder / Precision.FP16.graph, CPU)
        for name, choice in ((OURS, ours), ("int8, all linears, largest values", plain)):
            place = self.scratch / f"graph {len(choice.kept)}"
            place.mkdir()
            yield name, OnnxVision(write_int8(spec, self.weights, choice, place), CPU)

    def run(self, vision: TorchVision | OnnxVision) -> Run:
        embeddings, tokens = list[Tensor](), {dtype: list[Sequence[int]]() for dtype in DECODERS}
        dims = self.config.statistics[next(iter(self.config.statistics))].dims
        with torch.inference_mode():
            for frame in self.frames:
                embeddings.append(vision(self.pixels(frame)).float())
                for dtype, policy in self.policies.items():
                    engine, prompt = policy.engine, policy.prompter(frame.instruction)
                    assert isinstance(engine, StagedEngine), "the CPU's engine"
                    tokens[dtype].append(engine.decode(prompt, embeddings[-1], dims).tokens)
        return Run(torch.cat(embeddings), {dtype: np.asarray(found) for dtype, found in tokens.items()})


def compare(name: str, got: Run, wanted: Run, names: Sequence[str]) -> Iterator[VisionTokens]:
    error = float((got.embeddings - wanted.embeddings).norm() / wanted.embeddings.norm())
    for dtype in DECODERS:
        same = got.tokens[dtype] == wanted.tokens[dtype]
        columns = Clustered(np.column_stack([same.mean(axis=1), same.all(axis=1)]), names, [same.shape[1], 1])
        yield VisionTokens(name, dtype, float(f"{error:.3g}"), columns.interval(0), columns.interval(1))


def measure(scratch: Path, frames: int, calibration: int) -> Int8VisionResult:
    subject = Study(scratch, frames, calibration)
    ours, plain = subject.choices()
    LOG.info("%s", ours.summary)
    names = [str(frame.episode) for frame in subject.frames]
    exact = subject.run(subject.exact)
    found = list[VisionTokens]()
    for name, vision in subject.visions(ours, plain):
        found += compare(name, subject.run(vision), exact, names)
        LOG.info("%s", found[-len(DECODERS) :])
    return Int8VisionResult(
        frames=len(names),
        episodes=len(set(names)),
        calibration_frames=len(subject.calibration),
        linears=(len(ours.grids) - len(ours.weights_only), len(ours.weights_only), len(ours.kept)),
        kept=list(ours.kept),
        visions=found,
        targets=reached({one.vision: one for one in found if one.decoder == "fp32"}),
    )


def reached(found: Mapping[str, VisionTokens]) -> list[Target]:
    """Behind the float32 decoder: error beside the default's, tokens beside those of bf16 vision."""
    default, ours, floor = found["int8, all linears, largest values"], found[OURS], found[FLOOR]
    share = ours.embeddings_error / default.embeddings_error
    return [
        Target("error of the embeddings, of the default's", round(share, 3), "at most", NEARER),
        Target(
            "share of tokens lost beyond the floor's", round(floor.tokens.mean - ours.tokens.mean, 4), "at most", LOST
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tensorrt.int8_vision", description=__doc__)
    parser.add_argument("--frames", type=int, default=300, help="spread over the evaluation episodes")
    parser.add_argument("--calibration-frames", type=int, default=128)
    parser.add_argument("--out", type=Path, required=True, help="result file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edge-vla-int8-vision-") as scratch:
        study.write_result(given.out, measure(Path(scratch), given.frames, given.calibration_frames))


if __name__ == "__main__":
    study.run(main)
