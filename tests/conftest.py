"""Fixtures that several rooms' tests share. Everything is made here, from seeds and small goldens."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from edge_vla.export import Recipe, export
from tests.golden.openvla_tiny import write_checkpoint

TINY = "random:openvla-tiny"
BROUGHT = "EDGE_VLA_TINY_ARTIFACTS"  # a folder with int4, int8 and int16

# A law that takes longer on a busy machine is no less true. What fails on one machine must fail on all, so examples are
# the same in every run; `make test-laws` draws new ones.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("new", deadline=None, max_examples=1000)
settings.load_profile("same")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # The shapes are tiny: a second thread costs more in waiting than it computes.
    torch.set_num_threads(1)


@pytest.fixture
def heeded_ctrl_c() -> Iterator[None]:
    """Children end at SIGINT, though a shell that runs the tests in the background has them inherit that none does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def golden_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden OpenVLA in the Hub's layout. Read-only: copy it before changing anything."""
    return write_checkpoint(tmp_path_factory.mktemp("golden") / "openvla-tiny")


@pytest.fixture(scope="session")
def tiny_artifacts(tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, Path]:
    """`random:openvla-tiny` as an artifact in each number of bits. Read-only: copy before changing anything.

    `make test-aarch64` and `make test-lowest` bring them from elsewhere, as to a robot, whose torch need not export.
    """
    if brought := os.environ.get(BROUGHT):
        return {bits: Path(brought) / f"int{bits}" for bits in (4, 8, 16)}
    root = tmp_path_factory.mktemp("artifacts")
    return {bits: export(TINY, root / f"int{bits}", Recipe(bits=bits)).directory for bits in (4, 8, 16)}
