"""What a kernel check passes and fails, on outputs made for it: no kernel runs here."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.kernel_checks.cases import of_policy
from benchmarks.gpu.kernel_checks.check import KernelCheck, RandomInputs, evaluate
from edge_vla.quant import Scheme, dequantise
from edge_vla.spec import OPENVLA_7B, TINY

TRUTH = torch.tensor([1.0, -2.0, 4.0])
PLAIN = TRUTH + torch.tensor([0.1, 0.0, 0.0])


def check(kernel: Tensor, *, exact: bool = False) -> KernelCheck:
    return KernelCheck(lambda: [kernel], lambda: [PLAIN], lambda: [TRUTH], moved_bytes=1, exact=exact)


@pytest.mark.parametrize(("error", "passes"), [(0.0, True), (0.19, True), (0.21, False), (torch.nan, False)])
def test_a_kernel_may_have_twice_the_error_of_plain_pytorch(error: float, passes: bool) -> None:
    verdict = evaluate(check(TRUTH + torch.tensor([0.0, error, 0.0])))
    assert verdict.passed is passes
    assert verdict.allowed == pytest.approx(0.2)


def test_an_exact_check_asks_for_every_bit() -> None:
    assert evaluate(check(PLAIN, exact=True)).passed
    assert not evaluate(check(TRUTH, exact=True)).passed, "closer to the truth, but other bits"


def test_where_plain_pytorch_is_exact_one_rounding_is_allowed() -> None:
    truth = torch.tensor([1.0], dtype=torch.float64)
    plain = torch.ones(1, dtype=torch.bfloat16)
    eps = torch.finfo(torch.bfloat16).eps
    for off, passes in ((eps, True), (2 * eps, False)):
        made = plain + off
        assert evaluate(KernelCheck(lambda made=made: [made], lambda: [plain], lambda: [truth], 1)).passed is passes  # type: ignore[misc]


def test_random_weights_use_every_code() -> None:
    packed = RandomInputs.seeded(0, torch.device("cpu"), torch.bfloat16).packed(Scheme.INT4, 64, 128, 32)
    assert packed.check("a") is packed
    levels = dequantise(packed).view(64, -1, 32) / packed.scales.float()[:, :, None]  # type: ignore[union-attr]
    assert set(levels.round().int().flatten().tolist()) == set(range(-8, 8))


def test_every_kernel_of_the_engine_is_checked_once_per_shape() -> None:
    for spec, group in ((OPENVLA_7B, 128), (TINY, 32)):
        cases = of_policy(spec, 288, group)
        assert max(Counter(case.name for case in cases).values()) == 1
        assert {case.kernel for case in cases} == {
            "w4a16_gemv", "w8a16_gemv", "w16_gemv", "w4a16_gemm", "w8a16_gemm", "w8a8_gemm", "w4a8_gemm",
            "decode_pass", "gelu", "head", "layer_norm", "quantise_rows", "pass_attention",
            "prefill_attention", "rms_norm", "swiglu",
        }  # fmt: skip
