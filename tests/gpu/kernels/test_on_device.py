"""Every kernel on the device at the shapes of OpenVLA-7B, against float64."""

from __future__ import annotations

import pytest
import torch

from edge_vla.runtime.gpu.kernels.cases import Case, of_policy
from edge_vla.runtime.gpu.kernels.trials import Maker, judge
from edge_vla.spec import OPENVLA_7B

CASES = [*of_policy(OPENVLA_7B, 288), *of_policy(OPENVLA_7B, 273)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel_is_as_exact_as_plain_pytorch(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    verdict = judge(case.make(Maker.seeded(1, device, dtype)))
    assert verdict.passed, verdict
