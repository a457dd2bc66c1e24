"""Every kernel against the reference, and the rule of choice: auto may fall back, a name may not."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from edge_vla.errors import UsageError
from edge_vla.quant import PackedWeight, Scheme, dequantise, quantise
from edge_vla.runtime.kernels import KERNELS, Kernel, pick

CPU, BF16 = torch.device("cpu"), torch.bfloat16
CASES = [
    (kernel, scheme, group)
    for scheme, group in [(Scheme.INT4, 32), (Scheme.INT4, 128), (Scheme.INT8, None)]
    for kernel in KERNELS[scheme]
]


def packed(scheme: Scheme, group: int | None, outer: int = 96, inner: int = 256) -> PackedWeight:
    return quantise(torch.randn(outer, inner, generator=torch.Generator().manual_seed(1)), scheme, group)


@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize(("kernel", "scheme", "group"), CASES)
def test_kernel_is_as_exact_as_plain_bf16(kernel: type[Kernel], scheme: Scheme, group: int | None, rows: int) -> None:
    """Error against float64 at most twice that of a bf16 product with the same dequantised weight."""
    weight = packed(scheme, group)
    assert kernel.runs(weight, BF16, CPU), f"{kernel.name} is expected to run on any CPU that tests run on"
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
    room = torch.zeros(weight.codes.numel() + 64, dtype=weight.codes.dtype)
    moved = room[offset : offset + weight.codes.numel()].view(weight.codes.shape)
    moved.copy_(weight.codes)
    x = torch.randn(96, 256, generator=torch.Generator().manual_seed(2)).to(BF16)
    shifted = dataclasses.replace(weight, codes=moved)
    assert torch.equal(kernel(shifted, BF16, CPU)(x), kernel(weight, BF16, CPU)(x))


def test_auto_takes_the_first_that_runs() -> None:
    assert pick(packed(Scheme.INT4, 64), BF16, CPU).name == "torch-int4pack"
    # The packed operator is fast in bf16 only, and takes no group of 16.
    assert pick(packed(Scheme.INT4, 64), torch.float32, CPU).name == "reference"
    assert pick(packed(Scheme.INT4, 16), BF16, CPU).name == "reference"


def test_a_named_kernel_runs_or_raises() -> None:
    assert pick(packed(Scheme.INT4, 64), BF16, CPU, "reference").name == "reference"
    with pytest.raises(UsageError, match="does not run int4"):
        pick(packed(Scheme.INT4, 16), BF16, CPU, "torch-int4pack")
    with pytest.raises(UsageError, match="choose auto"):
        pick(packed(Scheme.INT4, 64), BF16, CPU, "marlin")
