"""Every kernel compiled for every chip at the shapes of OpenVLA-7B, by a driver that needs no device.

What only a device can say (that the numbers are right there, and how fast) is `test_on_device.py` and `make bench-gpu`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.runtime.gpu.conftest import HAVE_TRITON
from tests.runtime.gpu.kernels.test_tiles import CHIPS

REAL = {name: chip for name, chip in CHIPS.items() if name != "unknown"}
MOST_REGISTERS = 255


@pytest.mark.chips
@pytest.mark.skipif(not HAVE_TRITON, reason="triton is not installed: `make test-kernels`")
@pytest.mark.parametrize("name", REAL)
def test_kernels_compile_for(name: str) -> None:
    """Tensor cores where there is a product, no register spilt to memory, and no more memory than the chip has."""
    chip = REAL[name]
    arguments = [f"{chip.capability[0]}{chip.capability[1]}", str(chip.shared_bytes), str(chip.sm_count)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime.gpu.kernels.dry_driver", *arguments],
        env={key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({line["kernel"] for line in lines}) == 17
    for line in lines:
        assert not line["stack"], line
        assert line["registers"] <= MOST_REGISTERS, line
        assert line["shared"] <= chip.shared_bytes, line
        multiplies = any("MMA" in instruction for instruction in line)
        assert multiplies == any(word in line["kernel"] for word in ("gemv", "gemm", "attention", "logits")), line


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_table_knows_this_chip() -> None:
    from edge_vla.runtime.gpu.kernels.tiles import Chip

    chip = Chip.of(torch.device("cuda", 0))
    assert chip.capability >= (8, 0)
    assert chip.shared_bytes >= 99 * 1024
