"""Every kernel on the device at the shapes of OpenVLA-7B, against float64."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu.kernel_checks.cases import Case, of_policy
from benchmarks.gpu.kernel_checks.check import RandomInputs, evaluate
from edge_vla.quant import Scheme
from edge_vla.runtime.gpu.kernels import w4a16, w8
from edge_vla.runtime.gpu.kernels.tiles import GEMV_ROWS
from edge_vla.runtime.gpu.kernels.weights import repack_int4, repack_int8
from edge_vla.spec import OPENVLA_7B

CASES = [*of_policy(OPENVLA_7B, 288), *of_policy(OPENVLA_7B, 273)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel_is_as_exact_as_plain_pytorch(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    verdict = evaluate(case.make(RandomInputs.seeded(1, device, dtype)))
    assert verdict.passed, verdict


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPENVLA_7B.decoder.linears())
def test_a_rows_bits_depend_on_no_other_row(name: str, device: torch.device) -> None:
    n, k = OPENVLA_7B.decoder.linears()[name]
    inputs = RandomInputs.seeded(2, device, torch.bfloat16)
    x = inputs.rows(GEMV_ROWS, k)
    weight4 = repack_int4(inputs.packed(Scheme.INT4, n, k, 128))
    weight8 = repack_int8(inputs.packed(Scheme.INT8, n, k))
    whole4, whole8 = w4a16.kernel_gemv(x, weight4), w8.kernel_a16_gemv(x, weight8)
    for row in range(GEMV_ROWS):
        assert torch.equal(w4a16.kernel_gemv(x[row : row + 1], weight4), whole4[:, row : row + 1])
        assert torch.equal(w8.kernel_a16_gemv(x[row : row + 1], weight8), whole8[:, row : row + 1])
