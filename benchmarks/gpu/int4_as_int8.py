"""python -m benchmarks.gpu.int4_as_int8 [--out FILE]: what int4 weights lose when int8 rows meet them as int8.

Drawn weights, quantised to int4 to nearest in groups of 128, then rounded to int8 with one scale an output, as the
prefill of `triton/int8` multiplies by them. Seconds, and no GPU. Knows weights; knows nothing of tokens.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import torch
from torch import Tensor

from benchmarks import study
from edge_vla.quant import Scheme, dequantise, quantise
from edge_vla.runtime.gpu.kernels.weights import as_int8, repack_int4

log: Final = logging.getLogger("benchmarks.gpu")
OUT: Final = study.ROOT / "benchmarks" / "results" / "int4-as-int8.json"
SHAPE: Final = (512, 4096)
GROUP: Final = 128
OUTLIER: Final = 20.0  # standard deviations of the one weight of an output that has it


@dataclass(frozen=True)
class Loss:
    """Root mean square errors, as shares of the weights' own root mean square."""

    int4: float
    int8_of_int4: float
    both: float
    worst_output: float  # int8_of_int4 of the output that loses most


@dataclass(frozen=True)
class Int4AsInt8Result:
    KIND: ClassVar[str] = "int4-as-int8"
    VERSION: ClassVar[int] = 1

    outputs: int
    inputs: int
    group: int
    losses: dict[str, Loss]


def measure(shape: tuple[int, int] = SHAPE) -> Int4AsInt8Result:
    losses = {name: loss(weight) for name, weight in drawn(shape).items()}
    return Int4AsInt8Result(*shape, GROUP, losses)


def drawn(shape: tuple[int, int]) -> Mapping[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(shape, generator=generator)
    # Student's t: a normal number by the root of the mean of four squared ones
    heavy = torch.randn(shape, generator=generator)
    heavy /= torch.randn(4, *shape, generator=generator).square().mean(dim=0).sqrt()
    outlier = normal.clone()
    place = torch.randint(0, shape[1], (shape[0], 1), generator=generator)
    outlier.scatter_(1, place, OUTLIER)
    return {"normal": normal, "Student's t, 4 degrees": heavy, f"an outlier of {OUTLIER:g} an output": outlier}


def loss(weight: Tensor) -> Loss:
    """weight (N, K) float32."""
    packed = quantise(weight, Scheme.INT4, GROUP)
    int4, int8 = dequantise(packed), as_int8(repack_int4(packed))
    again = int8.codes.float() * int8.scales[:, None]
    size, outputs = _rms(weight), (again - int4).square().mean(dim=1) / weight.square().mean(dim=1)
    return Loss(
        _rms(int4 - weight) / size,
        _rms(again - int4) / size,
        _rms(again - weight) / size,
        float(outputs.max().sqrt()),
    )


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.int4_as_int8", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="JSON file")
    options = parser.parse_args()
    result = measure()
    for name, one in result.losses.items():
        log.info("%s: int4 %.1f %%, int8 of it %.1f, both %.1f", name, 100 * one.int4, 100 * one.int8_of_int4,
                 100 * one.both)  # fmt: skip
    study.write_result(options.out, result)
    log.info("written: %s", options.out)


if __name__ == "__main__":
    study.run(main)
