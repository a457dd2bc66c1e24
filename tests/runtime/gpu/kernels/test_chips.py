"""Every kernel compiled for every chip at the shapes of OpenVLA-7B, by a driver that needs no device.

What only a device can say (that the numbers are right there, and how fast) is `test_on_device.py` and `make bench-gpu`.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu.counted.__main__ import compiled, complaints, read_table
from benchmarks.gpu.counted.chips import CHIPS
from tests.runtime.gpu.conftest import HAVE_TRITON


@pytest.mark.chips
@pytest.mark.skipif(not HAVE_TRITON, reason="triton is not installed: `make test-kernels`")
@pytest.mark.parametrize("chip", CHIPS)
def test_kernels_compile_for(chip: str) -> None:
    """As in the committed table, or better; `python -m benchmarks.gpu.counted` makes a new one."""
    assert complaints(compiled(chip), read_table()) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_table_knows_this_chip() -> None:
    from edge_vla.runtime.gpu.kernels.tiles import Chip

    chip = Chip.of(torch.device("cuda", 0))
    assert chip.capability >= (8, 0)
    assert chip.shared_bytes >= 99 * 1024
