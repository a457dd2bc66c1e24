"""Every int8 code to a 16-bit number: the assembly by what PTX says of it, the kernels by products with ones."""

from __future__ import annotations

import struct

import pytest
import torch
from torch import Tensor

from edge_vla.runtime.gpu.kernels import tiles, w8
from edge_vla.runtime.gpu.kernels.tiles import Chip, Tile
from edge_vla.runtime.gpu.kernels.weights import Int8Weight, summed
from edge_vla.runtime.gpu.kernels.widen import UNIT, converts_ahead, widening
from tests.runtime.gpu.kernels.ptx import results

TYPES = (torch.bfloat16, torch.float16)
ALL_CODES = range(-128, 128)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_assembly_is_exact_for_every_code_in_every_place(dtype: torch.dtype) -> None:
    unit, assembly = widening(dtype, torch.device("cuda"))
    for code in ALL_CODES:
        four = [code, -1 - code, code // 2, (7 * code + 3) % 256 - 128]
        (word,) = struct.unpack("<I", struct.pack("<4b", *four))
        made = torch.tensor(results(2, assembly, word)).to(torch.int32).view(dtype)
        assert made.tolist() == [one / unit for one in four]


def test_what_triton_interprets_has_no_assembly() -> None:
    assert widening(torch.bfloat16, torch.device("cpu")) == (UNIT, "")


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("ahead", [False, True], ids=["as it multiplies", "ahead"])
def test_every_code_reaches_its_place(
    ahead: bool, dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row with a single one takes a column of the weight: every code, exactly."""
    if device.type == "cpu":
        monkeypatch.setattr(tiles, "INTERPRETER", Chip((9, 0) if ahead else (8, 0), 2, 99 * 1024))
    elif converts_ahead(Chip.of(device), 160) != ahead:
        pytest.skip("this device converts the other way")
    outputs, inputs = torch.arange(70)[:, None], torch.arange(160)[None, :]
    codes = ((outputs * 160 + inputs) % 256 - 128).to(torch.int8).to(device)
    assert set(codes.flatten().tolist()) == set(ALL_CODES)
    weight = Int8Weight(codes, torch.ones(70, dtype=torch.float16, device=device))
    ones = torch.eye(160, dtype=dtype, device=device)
    gemm = w8.kernel_a16_gemm(ones, weight, Tile(64, 64, 64, 4, 2, splits=1))
    gemv = torch.cat([summed(w8.kernel_a16_gemv(rows, weight), dtype) for rows in torch.split(ones, 8)])
    expected: Tensor = codes.T.to(dtype)
    assert torch.equal(gemm, expected)
    assert torch.equal(gemv, expected)
