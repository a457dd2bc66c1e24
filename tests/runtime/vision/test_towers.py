"""Vision as an artifact runs it: the patch embedding as one product."""

from __future__ import annotations

import pytest
import torch

from edge_vla.runtime.vision.towers import FlatPatches


@pytest.mark.parametrize("size", [(28, 28), (42, 56), (30, 45)])
def test_flat_patches_are_the_convolution(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(3, 24, 14, 14)
    pixels = torch.randn(2, 3, *size)
    expected = convolution(pixels).flatten(2).transpose(1, 2)
    got = FlatPatches(convolution)(pixels)
    assert got.shape == expected.shape
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()
