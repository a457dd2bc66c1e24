"""The device that these tests' kernels run on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.runtime.gpu.conftest import HAVE_GPU, HAVE_TRITON


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run; the test is skipped where they cannot."""
    if not HAVE_TRITON:
        pytest.skip("triton is not installed: `make test-kernels` installs it beside the environment and runs this")
    return torch.device("cuda" if HAVE_GPU else "cpu")


@pytest.fixture
def row_by_row(device: torch.device) -> Iterator[None]:
    """The interpreter multiplies by one row at a time: a library's product of many sums them by their number."""
    if device.type == "cuda":
        yield
        return
    from tests.runtime.gpu.kernels.interpreter import one_row_at_a_time

    with one_row_at_a_time():
        yield
