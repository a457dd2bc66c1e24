"""The device that these tests' kernels run on."""

from __future__ import annotations

import pytest
import torch

from tests.runtime.gpu.conftest import HAVE_GPU, HAVE_TRITON


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run; the test is skipped where they cannot."""
    if not HAVE_TRITON:
        pytest.skip("triton is not installed: `make test-kernels` installs it beside the environment and runs this")
    return torch.device("cuda" if HAVE_GPU else "cpu")
