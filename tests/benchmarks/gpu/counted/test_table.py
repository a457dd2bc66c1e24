"""Occupancy against NVIDIA's own table, what counts as worse, and launches at a toy's depth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import weights
from benchmarks.gpu.configurations import BF16, CONFIGURATIONS, W4A8, Configuration
from benchmarks.gpu.counted.__main__ import TABLE, complaints, read_table
from benchmarks.gpu.counted.chips import CHIPS, resident
from benchmarks.gpu.counted.launches import CHAINED, of_artifact, structure
from benchmarks.gpu.counted.result import ACCEPTED, ACCEPTED_GRIDS, FILLED, KernelRow, broken, worsened
from edge_vla.spec import OPENVLA_7B

ROW = KernelRow(
    "H200", "qkv", "w4a16_gemv", 576, 1, 4, 7, 71, 0, 20736, 632, 330, 16, 9, 4, 2.58, 25_000_000, 100_000_000,
    4.36, None, None,
)  # fmt: skip


@pytest.mark.parametrize(
    ("chip", "warps", "registers", "shared_bytes", "programs"),
    [  # of cudaOccupancyMaxActiveBlocksPerMultiprocessor, by NVIDIA's occupancy calculator
        ("A100", 8, 32, 0, 8),  # 64 warps
        ("A100", 8, 128, 0, 2),  # 65536 registers
        ("A100", 4, 255, 0, 2),
        ("3090", 4, 32, 0, 12),  # 48 warps
        ("3090", 1, 32, 0, 16),  # 16 programs
        ("3090", 4, 64, 48 * 1024, 2),  # 100 KiB of shared memory, one of each program reserved
        ("H200", 8, 255, 180224, 1),
        ("H200", 4, 71, 20736, 7),
    ],
)
def test_programs_of_a_multiprocessor(chip: str, warps: int, registers: int, shared_bytes: int, programs: int) -> None:
    assert resident(CHIPS[chip], warps, registers, shared_bytes) == programs


@pytest.mark.parametrize(
    ("field", "worse", "better"),
    [
        ("registers", 90, 60),
        ("stack_bytes", 8, 0),
        ("loop", 380, 300),
        ("per_weight", 2.9, 2.2),
        ("programs_per_sm", 5, 8),
        ("loop_products", 8, 32),
        ("loop_wide_loads", 2, 9),
    ],
)
def test_a_row_that_costs_more_is_named(field: str, worse: float, better: float) -> None:
    def changed(value: float) -> KernelRow:
        values: dict[str, Any] = {field: value}
        return replace(ROW, **values)

    (line,) = worsened([ROW], [changed(worse)])
    assert f"{field} {getattr(ROW, field)} -> {worse}" in line
    assert not list(worsened([ROW], [changed(better)]))


def test_rows_that_come_and_go_are_named() -> None:
    other = replace(ROW, case="o_proj")
    assert list(worsened([ROW], [ROW, other])) == ["H200 o_proj w4a16_gemv: not in the table"]
    assert list(worsened([ROW, other], [ROW])) == ["H200 o_proj w4a16_gemv: in the table, no longer compiled"]


def test_what_no_kernel_may_do() -> None:
    limit = CHIPS["H200"].shared_bytes
    assert not list(broken(ROW, limit))
    assert "on the stack" in next(broken(replace(ROW, stack_bytes=8), limit))
    assert "shared memory" in next(broken(replace(ROW, shared_bytes=limit + 1), limit))
    assert "does not fit" in next(broken(replace(ROW, programs_per_sm=0), limit))
    assert "no tensor-core" in next(broken(replace(ROW, loop_products=0), limit))
    assert "unexpected" in next(broken(replace(ROW, kernel="rms_norm"), limit))
    assert "computes 320 rows for 288" in next(broken(replace(ROW, rows=288, rows_computed=320), limit))
    assert not list(broken(replace(ROW, rows=261, rows_computed=272), limit))
    few = replace(ROW, per_sm=0.97)
    assert "0.97 programs" in next(broken(few, limit))
    assert not list(broken(replace(few, chip="4090"), limit))
    assert not list(broken(replace(few, case="w4a16_gemm o_proj 4096x4096, 288 rows"), limit))


def test_the_committed_table_is_whole() -> None:
    """Every chip, nothing broken but what is accepted, and no acceptance that is not needed."""
    table = read_table()
    assert {row.chip for row in table.kernels} == set(CHIPS)
    assert complaints(table.kernels, table) == []
    spilling = [" ".join(row.name) for row in table.kernels if row.stack_bytes]
    assert all(any(name.startswith(prefix) for name in spilling) for prefix in ACCEPTED)
    starved = [" ".join(row.name) for row in table.kernels if row.chip == FILLED and (row.per_sm or 1) < 1]
    assert all(any(name.startswith(prefix) for name in starved) for prefix in ACCEPTED_GRIDS)
    assert TABLE.exists()


@pytest.mark.parametrize("configuration", [W4A8, BF16], ids=lambda one: one.name)
def test_launches_grow_by_layers_and_blocks_as_in_the_table(configuration: Configuration, tmp_path: Path) -> None:
    """Counted at the toy's own depth: the same launches for each layer and block as at OpenVLA-7B's."""
    made = weights.write(
        tmp_path / "toy",
        weights.seeded("openvla-tiny", torch.device("cpu")),
        configuration.bits,
        configuration.vision_bits,
        torch.device("cpu"),
    )
    toy = {row.stage: row for row in of_artifact(made, configuration, "chain")}
    real = {row.stage: row for row in read_table().launches if row.configuration == configuration.name + CHAINED}
    spec, deep = made.manifest.config.spec, OPENVLA_7B
    blocks = [sum(tower.used_blocks for tower in one.towers) for one in (spec, deep)]
    assert toy["step"].kernels["pass_attention"] == spec.decoder.layers
    more_layers, more_blocks = deep.decoder.layers - spec.decoder.layers, blocks[1] - blocks[0]
    for stage, more in (("vision", more_blocks), ("step", more_layers)):
        grown = {name: (real[stage].kernels[name] - calls) / more for name, calls in toy[stage].kernels.items()}
        assert all(share == round(share) for share in grown.values()), grown
    assert real["step"].kernels["pass_attention"] == structure().decoder.layers == deep.decoder.layers
    *_, step = of_artifact(made, configuration)  # as it is loaded by default
    assert step.kernels == {"choose": 2, "decode_pass": 1}


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda one: one.name)
def test_an_action_is_at_most_a_thousand_launches(configuration: Configuration) -> None:
    launches = [row for row in read_table().launches if row.configuration == configuration.name]
    assert {row.stage for row in launches} == {"vision", "prefill", "step"}
    assert sum(row.total for row in launches) <= 1000
