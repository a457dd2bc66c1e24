"""Every int8 code to a 16-bit number: the assembly by what PTX says of it, the kernels by products with ones."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from edge_vla.runtime.gpu.kernels import tiles, w8
from edge_vla.runtime.gpu.kernels.tiles import Chip, Tile
from edge_vla.runtime.gpu.kernels.weights import Int8Weight, summed
from edge_vla.runtime.gpu.kernels.widen import UNIT, converts_ahead, widening

TYPES = (torch.bfloat16, torch.float16)
MANTISSA = {"bf16x2": 7, "f16x2": 10}
ALL_CODES = range(-128, 128)


def number(bits: int, mantissa: int) -> Fraction:
    """A 16-bit float by IEEE 754: sign, exponent, mantissa; subnormal where the exponent is 0."""
    bias = (1 << 14 - mantissa) - 1
    exponent, rest = bits >> mantissa & 2 * bias + 1, bits & (1 << mantissa) - 1
    assert exponent <= 2 * bias, "not finite"
    whole = rest if exponent == 0 else rest + (1 << mantissa)
    size = whole * Fraction(2) ** (max(exponent, 1) - bias - mantissa)
    return -size if bits >> 15 else size


def executed(assembly: str, codes: int) -> list[Fraction]:
    """The numbers in both output registers, lowest half first, of a word of four codes in $2."""
    registers, mantissa = {"$2": codes}, 0
    exact: dict[str, list[Fraction]] = {}
    for line in assembly.strip("{} ").split(";"):
        name, _, rest = line.strip().partition(" ")
        if not name or name == ".reg":
            continue
        to, *of = rest.replace(" ", "").split(",")
        values = [registers[one] if one in registers else int(one, 0) for one in of]
        if name == "mov.b32":
            registers[to] = values[0]
        elif name == "xor.b32":
            registers[to] = values[0] ^ values[1]
        elif name == "prmt.b32":
            bytes_ = (values[0] | values[1] << 32).to_bytes(8, "little")
            registers[to] = int.from_bytes(bytes([bytes_[values[2] >> 4 * i & 7] for i in range(4)]), "little")
        else:
            rounding, kind = name.removeprefix("fma.").split(".")
            assert rounding == "rn"
            mantissa = MANTISSA[kind]
            halves = [[number(value >> shift & 0xFFFF, mantissa) for value in values] for shift in (0, 16)]
            exact[to] = [a * b + c for a, b, c in halves]
    return [*exact["$0"], *exact["$1"]]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_assembly_is_exact_for_every_code_in_every_place(dtype: torch.dtype) -> None:
    unit, assembly = widening(dtype, torch.device("cuda"))
    for code in ALL_CODES:
        four = [code, -1 - code, code // 2, (7 * code + 3) % 256 - 128]
        word = int.from_bytes(bytes(one & 0xFF for one in four), "little")
        made = executed(assembly, word)
        assert made == [Fraction(one, unit) for one in four]
        assert [float(torch.tensor(float(one), dtype=dtype)) for one in made] == [float(one) for one in made]


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
