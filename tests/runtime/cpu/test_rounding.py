"""The rounding contract of the C engine's targets, as docs/cpu.md has it: which of them give the same bits.

Products of integers give the bits of plain C on all. So does everything on those that do not use an instruction for
bfloat16, whatever their vectors' width: what they sum in float32 they sum in one order.
"""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch
from torch import Tensor

from edge_vla.quant import PackedWeight, Scheme
from edge_vla.runtime.cpu.native.gemm import NativeGemm
from edge_vla.runtime.cpu.native.library import require_library
from edge_vla.runtime.cpu.native.structs import Int8Inputs
from edge_vla.runtime.cpu.native.targets import SCALAR, Target, runnable
from edge_vla.runtime.cpu.native.vision import NativeVision
from edge_vla.spec import TINY, DecoderSpec
from tests.runtime.cpu.test_decoders import NEEDS_COMPILER, pair, run
from tests.runtime.test_native import eight_bits, rows, weight

BF16_SUMS = ("avx512-bf16", "neon-bf16", "amx")  # their instruction adds pairs of products in its own way
FAST = [target for target in runnable() if target != SCALAR]
EXACT = [target for target in FAST if target.name not in BF16_SUMS]
SPECS = {
    "tiny": TINY.decoder,
    "odd heads": DecoderSpec(vocab_rows=64, width=160, mlp_width=352, layers=2, heads=8, kv_heads=2),
    "several groups": dataclasses.replace(TINY.decoder, width=256, mlp_width=320, layers=1),
}


def of(targets: list[Target]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("target", targets, ids=lambda target: target.name)


def product(packed: PackedWeight, x: Tensor, target: Target, int8: Int8Inputs) -> Tensor:
    return NativeGemm(packed, require_library(target), int8_inputs=int8)(x)


@NEEDS_COMPILER
@of(FAST)
@pytest.mark.parametrize("count", [1, 2, 3, 7, 12, 50])
@pytest.mark.parametrize(("n", "k"), [(64, 256), (89, 768), (192, 32)])
@pytest.mark.parametrize("scheme", [Scheme.BF16, Scheme.INT8, Scheme.INT4])
def test_a_gemm_has_the_bits_of_plain_c(scheme: Scheme, n: int, k: int, count: int, target: Target) -> None:
    if scheme is Scheme.BF16 and target.name in BF16_SUMS:
        pytest.skip("its own bits")
    packed, x = weight(scheme, 32 if scheme is Scheme.INT4 else None, n, k), rows(50, k)[:count]
    assert torch.equal(*(product(packed, x, one, Int8Inputs.NEVER) for one in (target, SCALAR)))


@NEEDS_COMPILER
@of(FAST)
@pytest.mark.parametrize("count", [1, 5, 50])
@pytest.mark.parametrize("scheme", [Scheme.INT8, Scheme.INT4, Scheme.W8A8])
def test_rows_in_8_bits_have_the_same_bits_everywhere(scheme: Scheme, count: int, target: Target) -> None:
    packed, x = weight(scheme, 64 if scheme is Scheme.INT4 else None, 89, 768), rows(50, 768)[:count]
    assert torch.equal(*(product(packed, x, one, Int8Inputs.ALWAYS) for one in (target, SCALAR)))


@NEEDS_COMPILER
@of(FAST)
@pytest.mark.parametrize("int8", [Int8Inputs.NEVER, Int8Inputs.ALWAYS])
@pytest.mark.parametrize("code", [-128, 127])
def test_no_sum_of_the_largest_codes_overflows(code: int, int8: Int8Inputs, target: Target) -> None:
    """Nothing saturates: neither pairs of products in 16 bits nor sums in 32, with inputs all at their largest."""
    k = 11008
    eight, four = weight(Scheme.INT8, None, 64, k), weight(Scheme.INT4, 128, 64, 1024)
    eight.codes[:] = code
    four.codes[:] = 0xFF if code > 0 else 0x00
    for packed in (eight, four):
        x = torch.full((7, packed.shape[1]), 3.0, dtype=torch.bfloat16)
        x[1], x[2, ::2] = -3.0, -3.0
        exact = (
            packed.codes.double() if packed is eight else torch.full(packed.shape, 7.0 if code > 0 else -8.0).double()
        )
        assert packed.scales is not None
        scales = packed.scales.double().view(64, -1).repeat_interleave(packed.group or k, dim=1)
        truth = x.double() @ (exact * scales).T
        got = product(packed, x, target, int8).double()
        assert ((got - truth).abs() <= 2**-8 * truth.abs() + 1e-3 * truth.abs().max()).all()


@cache
def decoded(name: str, scheme: Scheme, kernel: str) -> Tensor:
    spec = SPECS[name]
    x = torch.randn(1, 90, spec.width, generator=torch.Generator().manual_seed(1)).bfloat16()
    return run(pair(spec, scheme, kernel=kernel)[1], x, 71)


@NEEDS_COMPILER
@of(EXACT)
@pytest.mark.parametrize("kernel", ["native", "native/int8"])
@pytest.mark.parametrize("scheme", [Scheme.INT8, Scheme.INT4])
@pytest.mark.parametrize("name", SPECS)
def test_a_decoder_has_the_bits_of_plain_c(name: str, scheme: Scheme, kernel: str, target: Target) -> None:
    assert torch.equal(*(decoded(name, scheme, f"{kernel}@{one.name}") for one in (target, SCALAR)))


@cache
def seen(target: Target, bits: int) -> Tensor:
    stored, _ = eight_bits(TINY, bits)
    size, generator = TINY.image_size, torch.Generator().manual_seed(1)
    pixels = torch.randn(1, 3 * len(TINY.towers), size, size, generator=generator)
    return NativeVision(TINY, stored, require_library(target))(pixels)


@NEEDS_COMPILER
@of(EXACT)
@pytest.mark.parametrize("bits", [16, 8])
def test_vision_has_the_bits_of_plain_c(bits: int, target: Target) -> None:
    assert torch.equal(*(seen(one, bits) for one in (target, SCALAR)))
