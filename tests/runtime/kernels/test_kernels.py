"""Every kernel against the reference, and the rule of choice: auto may fall back, a name may not."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from edge_vla.errors import UsageError
from edge_vla.quant import PackedWeight, Scheme, dequantise, quantise
from edge_vla.runtime.cpu.native.int4 import BLOCK, dequantise_int4, dequantise_int4_torch
from edge_vla.runtime.kernels import KERNELS, Kernel, gemm, pick
from edge_vla.runtime.kernels.arm import ERROR, DynamicInt4
from edge_vla.runtime.kernels.cpu import BF16_ERROR, CpuInt4, agrees
from edge_vla.runtime.kernels.gemm import GEMV_ROWS, DynamicInt8, GemmInt4
from edge_vla.runtime.kernels.reference import Reference

CPU, BF16 = torch.device("cpu"), torch.bfloat16
CASES = [
    (kernel, scheme, group)
    for scheme, group in [
        (Scheme.INT4, 32),
        (Scheme.INT4, 128),
        (Scheme.UINT4, 32),
        (Scheme.UINT4, 128),
        (Scheme.INT8, None),
    ]
    for kernel in KERNELS[scheme]
    if kernel not in (DynamicInt8, DynamicInt4)
]


def packed(scheme: Scheme, group: int | None, n: int = 128, k: int = 256) -> PackedWeight:
    return quantise(torch.randn(n, k, generator=torch.Generator().manual_seed(1)), scheme, group)


@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize(("kernel", "scheme", "group"), CASES)
def test_kernel_is_as_exact_as_plain_bf16(kernel: type[Kernel], scheme: Scheme, group: int | None, rows: int) -> None:
    """Error against float64 at most twice that of a bf16 product with the same dequantised weight."""
    weight = packed(scheme, group)
    may_not = issubclass(kernel, CpuInt4) and torch.backends.cpu.get_cpu_capability() != "AVX512"
    assert kernel.runs(weight, BF16, CPU) or may_not, f"{kernel.name} is expected to run on this CPU"
    if not kernel.runs(weight, BF16, CPU):
        pytest.skip("torch packs or multiplies int4 in another way on this CPU")
    x = torch.randn(2, rows, 256, generator=torch.Generator().manual_seed(2)).to(BF16)
    truth = x.double() @ dequantise(weight).double().T
    plain = torch.nn.functional.linear(x, dequantise(weight, BF16))
    ours = kernel(weight, BF16, CPU)(x)
    assert ours.shape == plain.shape
    assert (ours.double() - truth).abs().max() <= 2 * (plain.double() - truth).abs().max()


@pytest.mark.parametrize("offset", [1, 8, 24])
@pytest.mark.parametrize(("kernel", "scheme", "group"), CASES)
def test_codes_may_lie_anywhere(kernel: type[Kernel], scheme: Scheme, group: int | None, offset: int) -> None:
    """A weight mapped from a file starts at any address; torch's int8 product crashes on an unaligned one."""
    weight = packed(scheme, group)
    place = torch.zeros(weight.codes.numel() + 64, dtype=weight.codes.dtype)
    moved = place[offset : offset + weight.codes.numel()].view(weight.codes.shape)
    moved.copy_(weight.codes)
    x = torch.randn(96, 256, generator=torch.Generator().manual_seed(2)).to(BF16)
    if not kernel.runs(weight, BF16, CPU):
        pytest.skip("torch packs int4 in another way on this CPU")
    shifted = dataclasses.replace(weight, codes=moved)
    assert torch.equal(kernel(shifted, BF16, CPU)(x), kernel(weight, BF16, CPU)(x))


def test_auto_takes_the_first_that_runs() -> None:
    first = CpuInt4 if CpuInt4.runs(packed(Scheme.INT4, 64), BF16, CPU) else Reference
    assert pick(packed(Scheme.INT4, 64), BF16, CPU) is first
    # The packed operator is fast in bf16 only, and takes no group of 16.
    assert pick(packed(Scheme.INT4, 64), torch.float32, CPU).name == "reference"
    assert pick(packed(Scheme.INT4, 16), BF16, CPU).name == "reference"


class Rounding(Reference):
    """torch's int4 product as it is on Arm: what is summed is rounded once more than elsewhere."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        left, right = x.clone(), x.clone()
        left[..., half:], right[..., :half] = 0, 0
        return super().forward(left) + super().forward(right)


def test_bounds_of_exactness_are_those_of_rounding() -> None:
    """Two roundings to bfloat16 pass and three do not; a row rounded to int8 passes, one rounded to 6 bits does not."""
    x = torch.randn(10_000, 256, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    once = float((x.to(BF16).double() - x).norm() / x.norm())
    assert 2**0.5 * once < BF16_ERROR < 3**0.5 * once
    steps = [x.abs().amax(1, keepdim=True) / largest for largest in (127, 31)]
    eight, six = (float(((x / step).round() * step - x).norm() / x.norm()) for step in steps)
    assert eight < ERROR < six


def test_a_product_less_exact_than_bf16_is_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert agrees(Reference, Scheme.INT4, 32), "rounded twice, weight and result: that is bf16"
    assert not agrees(Rounding, Scheme.INT4, 32)
    for scheme in (Scheme.INT4, Scheme.UINT4):
        weight = packed(scheme, 64)
        monkeypatch.setattr("edge_vla.runtime.kernels.cpu._int4_works", lambda: agrees(Rounding, Scheme.INT4, 32))
        assert pick(weight, BF16, CPU, rows=300) is Reference
        with pytest.raises(UsageError, match="does not run"):
            pick(weight, BF16, CPU, "torch-int4pack")


def test_a_named_kernel_runs_or_raises() -> None:
    assert pick(packed(Scheme.INT4, 64), BF16, CPU, "reference").name == "reference"
    with pytest.raises(UsageError, match="does not run int4"):
        pick(packed(Scheme.INT4, 16), BF16, CPU, "torch-int4pack")
    with pytest.raises(UsageError, match="choose auto"):
        pick(packed(Scheme.INT4, 64), BF16, CPU, "marlin")


@pytest.mark.parametrize(("n", "k", "group"), [(64, 64, 32), (192, 256, 128), (256, 160, 32)])
def test_dequantising_int4_in_c_and_in_torch_gives_the_oracles_bits(n: int, k: int, group: int) -> None:
    weight = packed(Scheme.INT4, group, n, k)
    if not GemmInt4.runs(weight, BF16, CPU):
        pytest.skip("torch packs int4 in another way on this CPU")
    kernel = GemmInt4(weight, BF16, CPU)
    lines, blocks = kernel.codes.view(n // BLOCK, k, BLOCK // 2), n // BLOCK
    oracle = dequantise(weight, BF16).T
    for first, last in {(0, blocks), (blocks - 1, blocks), (0, 1)}:
        part = oracle[:, first * BLOCK : last * BLOCK]
        for form in (dequantise_int4, dequantise_int4_torch):
            out = torch.full(part.shape, float("nan"), dtype=BF16)
            assert torch.equal(form(lines, kernel.scales_and_zeros, group, first, last, out), part)


def test_a_weight_in_slices_is_the_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scratch buffer holds a part of a large weight at a time."""
    for scheme, group in [(Scheme.INT4, 32), (Scheme.INT8, None)]:
        weight = packed(scheme, group, 320, 128)
        kernel = next(kernel for kernel in KERNELS[scheme] if kernel.name.endswith("/bf16"))
        if not kernel.runs(weight, BF16, CPU):
            continue
        x = torch.randn(GEMV_ROWS + 1, 128, generator=torch.Generator().manual_seed(3)).to(BF16)
        whole = kernel(weight, BF16, CPU)(x)
        monkeypatch.setattr("edge_vla.runtime.kernels.gemm.SLICE", 128)
        assert torch.equal(kernel(weight, BF16, CPU)(x), whole)
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("named", "scheme", "group"),
    [(DynamicInt8, Scheme.INT8, None), (DynamicInt4, Scheme.INT4, 32), (DynamicInt4, Scheme.INT4, 128)],
)
def test_int8_activations_cost_what_rounding_to_int8_costs(
    named: type[DynamicInt4] | type[DynamicInt8], scheme: Scheme, group: int | None
) -> None:
    weight = packed(scheme, group)
    if not named.runs(weight, BF16, CPU):
        pytest.skip("this torch has no such product")
    assert pick(weight, BF16, CPU, rows=300).name != named.name, "it is chosen by name only"
    kernel = pick(weight, BF16, CPU, named.name)(weight, BF16, CPU)
    x = torch.randn(40, 256, generator=torch.Generator().manual_seed(2)).to(BF16)
    truth = x.double() @ dequantise(weight).double().T
    # Each activation moves by half a step at most, a row's range having 255 or 2 x 127: independent errors, six sigma.
    step = 2 * x.double().abs().amax(-1, keepdim=True) / 254
    bound = 6 * step / 12**0.5 * dequantise(weight).double().norm(dim=1) + 2**-7 * truth.abs()
    assert ((kernel(x).double() - truth).abs() <= bound).all()
    assert torch.equal(kernel(torch.zeros(20, 256).to(BF16)), torch.zeros(20, 128).to(BF16))
    gemv, gemm = kernel(x[:3]), kernel(x)[:3]
    assert ((gemv.double() - gemm.double()).abs() <= bound[:3]).all()


def test_the_scratch_is_shared_by_callers_in_and_out_of_inference_mode() -> None:
    with torch.inference_mode():
        gemm._scratch(640, 1024).zero_()
    gemm._scratch(640, 1024).copy_(torch.ones(640, 1024))
