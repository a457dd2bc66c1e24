"""Tiles by capability: they fit the chip, cover the work, and nothing asks a device before it must."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_vla.runtime.gpu.kernels.tiles import RESERVE, Chip, attention_tile, gemm_tile, gemv_tile, head_tile, split_k

CHIPS = {  # shared memory of a program, by NVIDIA's table of capabilities
    "A100": Chip((8, 0), 108, 163 * 1024),
    "3090": Chip((8, 6), 82, 99 * 1024),
    "Orin": Chip((8, 7), 16, 163 * 1024),
    "4090": Chip((8, 9), 128, 99 * 1024),
    "H200": Chip((9, 0), 132, 227 * 1024),
    "B200": Chip((10, 0), 148, 227 * 1024),
    "5090": Chip((12, 0), 170, 99 * 1024),
    "unknown": Chip((13, 5), 200, 99 * 1024),
}
KINDS = {"w4a16": (4, 16), "w8a16": (8, 16), "w8a8": (8, 8), "w4a8": (4, 8)}


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_tiles_fit_every_chip(chip: Chip) -> None:
    chosen = [(gemm_tile(chip, kind), bits) for kind, bits in KINDS.items()]
    chosen += [(gemv_tile(chip, bits, 4096), (bits, 16)) for bits in (4, 8)]
    chosen.append((head_tile(chip), (16, 16)))
    for tile, bits in chosen:
        assert tile.stages * tile.stage_bytes(*bits) + RESERVE <= chip.shared_bytes
        assert tile.stages >= 2, f"{tile} cannot load while it multiplies"


def test_attention_of_few_rows_asks_for_more_at_once_where_there_is_room() -> None:
    slots = {name: attention_tile(chip, 8, 128).block_n for name, chip in CHIPS.items()}
    assert (slots["H200"], slots["4090"]) == (128, 64)
    assert attention_tile(CHIPS["H200"], 1, 128) == attention_tile(CHIPS["H200"], 8, 128), "bits depend on the tile"


def test_a_chip_with_little_memory_gets_fewer_stages() -> None:
    small = gemm_tile(Chip((9, 0), 132, 64 * 1024), "w8a8")
    assert small.stages < gemm_tile(CHIPS["H200"], "w8a8").stages
    assert gemm_tile(Chip((9, 0), 132, 16 * 1024), "w8a8").stages == 1


@given(chip=st.sampled_from(list(CHIPS.values())), n=st.integers(1, 30_000), blocks=st.integers(1, 200))
def test_splits_cover_every_block_once(chip: Chip, n: int, blocks: int) -> None:
    parts, each = split_k(chip, gemv_tile(chip, 4, n), n, blocks)
    assert (parts - 1) * each < blocks <= parts * each


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
@pytest.mark.parametrize(("n", "k"), [(12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008)])
def test_a_decode_step_fills_the_chip(chip: Chip, n: int, k: int) -> None:
    tile = gemv_tile(chip, 4, n)
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
