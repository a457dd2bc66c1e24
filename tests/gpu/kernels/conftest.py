"""Where the kernels of these tests run: on the GPU if there is one, else in Triton's interpreter on the CPU."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

from tests.gpu.kernels.interpreter import mend

HAVE_TRITON = importlib.util.find_spec("triton") is not None
HAVE_GPU = torch.cuda.is_available()

if HAVE_TRITON and not HAVE_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # before a kernel is made: `jit` looks then
    mend()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run; the test is skipped where they cannot."""
    if not HAVE_TRITON:
        pytest.skip("triton is not installed: `make test-kernels` installs it beside the environment and runs this")
    return torch.device("cuda" if HAVE_GPU else "cpu")
