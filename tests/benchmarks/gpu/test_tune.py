"""The tile tuner: what it tries fits the chip, what breaks is no winner, and a dry run goes through all of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.counted.chips import CHIPS
from benchmarks.gpu.kernel_checks.check import RandomInputs
from benchmarks.gpu.tune import read_outcomes, timed
from benchmarks.gpu.tune_shapes import KINDS, MOST_SUMS, Shape, Work, candidates, shapes, work
from edge_vla.runtime.gpu.kernels.tiles import Tile
from edge_vla.spec import OPENVLA_7B
from tests.runtime.gpu.conftest import HAVE_GPU, HAVE_TRITON

TILE = Tile(64, 64, 128, 4, 2, 1, 1)


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_every_shape_has_tiles_that_the_chip_holds(chip: object) -> None:
    assert isinstance(chip, type(CHIPS["H200"]))
    found = list(shapes(OPENVLA_7B, 288, KINDS))
    assert {shape.kind for shape in found} == set(KINDS)
    assert len({(shape.n, shape.k) for shape in found if shape.kind.endswith("tower")}) == 11
    for shape in found:
        tried = candidates(shape, chip)
        assert len(tried) == len(set(tried)) > 5, shape
        if shape.kernel.endswith("gemm"):
            sums = [tile.block_n * sum(tile.rows(shape.m).sizes) // (32 * tile.warps) for tile in tried]
            assert max(sums) <= MOST_SUMS


def test_a_wrong_product_and_a_broken_launch_are_no_winners() -> None:
    truth = torch.arange(12.0).view(3, 4)
    for made, said in ((truth + 1, "wrong"), (truth * torch.nan, "wrong"), (truth, None)):
        got = timed(Work(lambda _, made=made: made, lambda: truth, 1, 1), TILE, TILE, truth, 0.0, 1)  # type: ignore[misc]
        assert (got.failed is None and got.time_us is not None) if said is None else said in (got.failed or "")

    def breaks(_: object) -> torch.Tensor:
        raise RuntimeError("out of resource: shared memory")

    assert "out of resource" in (timed(Work(breaks, lambda: truth, 1, 1), TILE, TILE, truth, 0.0, 1).failed or "")


def test_a_tile_that_ends_its_process_is_blamed_unless_the_process_was_stopped() -> None:
    lines = [json.dumps(line) for line in ({"start": "a"}, {"end": "a", "failed": None}, {"start": "b"})]
    assert read_outcomes(lines, late=False) == {"a": None, "b": "its process ended"}
    assert read_outcomes(lines, late=True) == {"a": None}


@pytest.mark.parametrize("kind", KINDS)
def test_the_work_is_the_product_of_its_shape(kind: str) -> None:
    """Without Triton: the truth that tiles are compared with, against a product in float64 of what it was made of."""
    made = work(Shape(kind, "a", 3, 40, 64), RandomInputs.seeded(0, torch.device("cpu"), torch.bfloat16), 32)
    assert made.truth().shape == (3, 40)
    assert made.moved_bytes > 40 * 64 // 2
    assert made.truth().isfinite().all()


@pytest.mark.skipif(not HAVE_TRITON or HAVE_GPU, reason="needs Triton's interpreter")
def test_a_dry_run_tries_tiles_and_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "tiles.json"
    command = [sys.executable, "-m", "benchmarks.gpu.tune", "--dry-run", "--out", str(path), "--budget", "60"]
    done = subprocess.run([*command, "--kind", "w8a8_tower"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(path.read_text())
    assert result["dry_run"] is True
    (row,) = result["rows"]
    assert row["best"], row
    assert not row["failed"], row
