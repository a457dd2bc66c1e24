"""bf16 products by float32's: the rounding of one sum, whose order alone differs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import edge_vla
from edge_vla.data import synthetic_image
from edge_vla.processor import features
from edge_vla.runtime.cpu.native.targets import VARIABLE, named
from edge_vla.runtime.widened import BF16_INSTRUCTIONS, widened, widening_pays
from tests.conftest import TINY


@pytest.fixture(scope="module")
def policy() -> edge_vla.Policy:
    return edge_vla.load(TINY, "cpu")


def linears(policy: edge_vla.Policy) -> list[nn.Linear]:
    decoder = policy.network.decoder
    assert isinstance(decoder, nn.Module)
    return [one for one in decoder.modules() if type(one) is nn.Linear]


def test_a_product_is_the_exact_sum_rounded_once(policy: edge_vla.Policy) -> None:
    """Against float64: half a rounding step of bf16, and what float32 sums may add to it."""
    linear = linears(policy)[0]
    x = torch.randn(40, linear.in_features, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = x.double() @ linear.weight.double().T
    size = x.double().abs() @ linear.weight.double().abs().T
    with widened(policy.network):
        got = linear(x)
    assert got.dtype == torch.bfloat16
    assert ((got.double() - exact).abs() <= exact.abs() * 2**-8 + size * 2**-20).all()


def test_everything_is_as_before_afterwards(policy: edge_vla.Policy) -> None:
    image = synthetic_image(0, policy.config.spec.image_size)
    before = policy.act(image, "open the drawer")
    with widened(policy.network):
        policy.act(image, "open the drawer")
    after = policy.act(image, "open the drawer")
    assert (before.tokens, before.margins) == (after.tokens, after.margins)
    assert all("forward" not in vars(one) for one in linears(policy))


def test_it_pays_without_instructions_for_bf16(policy: edge_vla.Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert widening_pays(policy.network) == (not features() & BF16_INSTRUCTIONS)
    monkeypatch.setenv(VARIABLE, "scalar")
    assert not named("scalar").features & BF16_INSTRUCTIONS
    assert widening_pays(policy.network)


def test_it_is_for_bf16_alone() -> None:
    assert not widening_pays(edge_vla.load(TINY, "cpu", dtype="fp32").network)
