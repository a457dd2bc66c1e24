"""Tiles by capability: they fit the chip, cover the work, and nothing asks a device before it must."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu.counted.chips import CHIPS
from edge_vla.runtime.gpu.kernels import tiles
from edge_vla.runtime.gpu.kernels.tiles import (
    BITS,
    GEMMS,
    LEAST_ROWS,
    RESERVE,
    Chip,
    Reader,
    Tile,
    cost,
    gemm_candidates,
    gemm_tile,
    gemv_tile,
    head_tile,
    size_class,
    split_k,
)

ALL = {**CHIPS, "unknown": Chip((13, 5), 200, 99 * 1024)}
SHAPES = [(12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008), (3072, 1024), (1024, 4096), (1152, 4304), (40, 64)]


@pytest.mark.parametrize("chip", ALL.values(), ids=ALL)
def test_tiles_fit_every_chip(chip: Chip) -> None:
    chosen = [
        (gemm_tile(chip, kind, n, k, reader), kind) for kind in GEMMS for n, k in SHAPES for reader in get_args(Reader)
    ]
    chosen += [(gemv_tile(chip, kind, n, k), kind) for kind in ("w4a16", "w8a16") for n, k in SHAPES]
    chosen.append((head_tile(chip, 256), "w8a16"))
    for tile, kind in chosen:
        assert tile.stages * tile.stage_bytes(*BITS[kind]) + RESERVE <= chip.shared_bytes
        assert tile.stages >= 2, f"{tile} cannot load while it multiplies"


@given(
    m=st.integers(1, 900),
    block_m=st.sampled_from((64, 128)),
    row_tiles=st.integers(1, 3),
)
def test_row_tiles_hold_every_row(m: int, block_m: int, row_tiles: int) -> None:
    rows = Tile(128, block_m, 128, 8, 2, row_tiles).rows(m)
    for used in (rows.sizes, rows.last):
        assert len(used) <= row_tiles
        assert all(LEAST_ROWS <= size <= block_m for size in used)
    assert rows.computed >= m > (rows.programs - 1) * sum(rows.sizes)
    sizes = list(rows.launch().values())
    assert list(rows.launch()) == ["M0", "M1", "M2", "L0", "L1", "L2"]
    assert sizes == [*rows.sizes, *[0] * (3 - len(rows.sizes)), *(rows.last if any(sizes[3:]) else ()), *[0] * 3][:6]


@pytest.mark.parametrize(("rows", "expected"), [(288, [128, 128, 32]), (261, [128, 128, 16]), (256, [128, 128, 0])])
def test_one_program_holds_all_rows_of_a_pass(rows: int, expected: list[int]) -> None:
    made = Tile(128, 128, 128, 8, 2, 3).rows(rows)
    assert (made.programs, list(made.launch().values())) == (1, [*expected, 0, 0, 0])


@pytest.mark.parametrize(
    ("rows", "tile", "expected"),
    [
        (288, Tile(128, 64, 128, 8, 4), (5, (64,), (32,))),
        (261, Tile(64, 64, 128, 4, 4), (5, (64,), (16,))),
        (261, Tile(64, 64, 128, 4, 3, 2), (3, (64, 32), (64, 16))),
        (304, Tile(64, 64, 128, 4, 3, 2), (3, (64, 64), (32, 16))),
    ],
)
def test_the_last_program_computes_only_what_is_left(
    rows: int, tile: Tile, expected: tuple[int, tuple[int, ...], tuple[int, ...]]
) -> None:
    made = tile.rows(rows)
    assert (made.programs, made.sizes, made.last) == expected
    assert made.computed <= 1.06 * rows


@pytest.mark.parametrize("kind", GEMMS)
def test_the_cheapest_candidate_is_taken_unless_one_was_measured(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chip, (n, k) = CHIPS["H200"], (4096, 11008)
    monkeypatch.setattr(tiles, "TUNED", {})
    chosen = gemm_tile(chip, kind, n, k, "decoder")
    programs = chosen.rows(288).programs * -(-n // chosen.block_n)
    assert programs * chosen.splits >= 0.95 * chip.sm_count, f"{programs} programs do not fill 132 SMs"
    assert all(cost(chip, chosen, kind, n, k) <= cost(chip, tile, kind, n, k) for tile in gemm_candidates(chip, kind))
    assert gemm_tile(chip, kind, n, k).splits == 1
    measured = Tile(64, 64, 64, 4, 2, 2, splits=3)
    monkeypatch.setattr(tiles, "TUNED", {(f"{kind}_gemm", chip.capability): {size_class(n, k): measured}})
    assert gemm_tile(chip, kind, n, k, "decoder") == measured
    assert gemm_tile(chip, kind, 2 * n, k, "decoder") != measured


def test_a_chip_with_little_memory_gets_fewer_stages() -> None:
    stages = [gemm_tile(Chip((9, 0), 132, kib * 1024), "w8a8", 4096, 4096).stages for kib in (227, 64, 16)]
    assert stages[0] > stages[1] >= stages[2] == 1


@given(chip=st.sampled_from(list(CHIPS.values())), n=st.integers(1, 30_000), blocks=st.integers(1, 200))
def test_splits_cover_every_block_once(chip: Chip, n: int, blocks: int) -> None:
    parts, each = split_k(chip, gemv_tile(chip, "w4a16", n, 128 * blocks), n, blocks)
    assert (parts - 1) * each < blocks <= parts * each


@pytest.mark.parametrize("chip", ALL.values(), ids=ALL)
@pytest.mark.parametrize(("n", "k"), [(12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008)])
def test_a_decode_step_fills_the_chip(chip: Chip, n: int, k: int) -> None:
    tile = gemv_tile(chip, "w4a16", n, k)
    parts, _ = split_k(chip, tile, n, k // tile.block_k)
    assert parts * -(-n // tile.block_n) >= 2 * chip.sm_count


def test_import_asks_no_device() -> None:
    script = (
        "import torch\n"
        "def refuse(*_): raise SystemExit('asked a device')\n"
        "torch.cuda._lazy_init = torch.cuda.get_device_properties = torch.cuda.current_device = refuse\n"
        "import benchmarks.gpu.kernel_checks.cases\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_without_triton_references_work_and_a_kernel_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from edge_vla.errors import BackendError\n"
        "from edge_vla.runtime.gpu.kernels import quantise_rows\n"
        "quantise_rows.reference(torch.ones(1, 4), 'int8')\n"
        "try: quantise_rows.kernel(torch.ones(1, 4), 'int8')\n"
        "except BackendError as error: assert 'edge-vla[triton]' in str(error), error\n"
        "else: raise SystemExit('launched')\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("told", [True, False])
def test_a_torch_that_does_not_tell_the_shared_memory(told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.6, the oldest that is supported, has no such property: Triton is asked."""
    known = {"shared_memory_per_block_optin": 232448} if told else {}
    about = SimpleNamespace(major=9, minor=0, multi_processor_count=132, **known)
    utils = SimpleNamespace(get_device_properties=lambda index: {"max_shared_mem": 101376 + index})
    runtime = SimpleNamespace(driver=SimpleNamespace(active=SimpleNamespace(utils=utils)))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setitem(sys.modules, "triton.runtime", runtime)
    chip = tiles._chip.__wrapped__(torch.device("cuda", 3))
    assert chip == Chip((9, 0), 132, 232448 if told else 101379)
