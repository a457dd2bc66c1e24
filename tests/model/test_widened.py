"""bf16 products by float32's: the rounding of one sum, whose order alone differs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import edge_vla
from edge_vla.bench.messages import System
from edge_vla.bench.worker import OwnPolicy, Worker, load_system
from edge_vla.data import synthetic_image
from edge_vla.model.widened import INSTRUCTIONS, LIMIT, widened, widening_pays
from edge_vla.processor import features
from tests.conftest import TINY


@pytest.fixture(scope="module")
def policy() -> edge_vla.Policy:
    return edge_vla.load(TINY, "cpu")


def linears(policy: edge_vla.Policy) -> list[nn.Linear]:
    decoder = policy.network.decoder
    assert isinstance(decoder, nn.Module)
    return [one for one in decoder.modules() if type(one) is nn.Linear]


def modules(policy: edge_vla.Policy) -> list[nn.Module]:
    return [part for part in (policy.network.vision, policy.network.decoder) if isinstance(part, nn.Module)]


def test_a_product_is_the_exact_sum_rounded_once(policy: edge_vla.Policy) -> None:
    """Against float64: half a rounding step of bf16, and what float32 sums may add to it."""
    linear = linears(policy)[0]
    x = torch.randn(40, linear.in_features, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = x.double() @ linear.weight.double().T
    size = x.double().abs() @ linear.weight.double().abs().T
    with widened(*modules(policy)):
        got = linear(x)
    assert got.dtype == torch.bfloat16
    assert ((got.double() - exact).abs() <= exact.abs() * 2**-8 + size * 2**-20).all()


def test_everything_is_as_before_afterwards(policy: edge_vla.Policy) -> None:
    image = synthetic_image(0, policy.config.spec.image_size)
    before = policy.act(image, "open the drawer")
    with widened(*modules(policy)):
        policy.act(image, "open the drawer")
    after = policy.act(image, "open the drawer")
    assert (before.tokens, before.margins) == (after.tokens, after.margins)
    assert all("forward" not in vars(one) for one in linears(policy))


def test_gradients_are_those_of_float32(policy: edge_vla.Policy) -> None:
    """Against autograd in float64 through the same product: rounded once where they come back to bf16."""
    linear = linears(policy)[0]
    x = torch.randn(20, linear.in_features, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
    given = torch.randn(20, linear.out_features, generator=torch.Generator().manual_seed(2)).bfloat16()
    with widened(linear):
        (got,) = torch.autograd.grad(linear(x), x, given)
    exact = given.double() @ linear.weight.double()
    size = given.double().abs() @ linear.weight.double().abs()
    assert ((got.double() - exact).abs() <= exact.abs() * 2**-8 + size * 2**-20).all()


def test_a_convolution_too() -> None:
    generator = torch.Generator().manual_seed(3)
    patches = nn.Conv2d(3, 16, kernel_size=4, stride=4).bfloat16().requires_grad_(False)
    x = torch.randn(2, 3, 16, 16, generator=generator).bfloat16()
    with widened(patches):
        got = patches(x)
    assert patches.bias is not None
    exact = nn.functional.conv2d(x.double(), patches.weight.double(), patches.bias.double(), 4)
    assert ((got.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-4).all()


def test_it_pays_without_instructions_for_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.delenv(LIMIT, raising=False)
    assert widening_pays(torch.bfloat16, cpu) == (not features() & INSTRUCTIONS)
    monkeypatch.setenv(LIMIT, "avx2")
    assert widening_pays(torch.bfloat16, cpu)
    assert not widening_pays(torch.float32, cpu)
    assert not widening_pays(torch.bfloat16, torch.device("cuda"))


def test_an_episode_runs_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker opens around episodes reaches the reference's layers, and no artifact's."""
    monkeypatch.setenv(LIMIT, "AVX2")
    worker = Worker.__new__(Worker)
    worker.policy = load_system(System("reference", TINY, device="cpu"))
    assert isinstance(worker.policy, OwnPolicy)
    with worker._fast_products():
        assert all("forward" in vars(one) for one in linears(worker.policy.policy))
    assert all("forward" not in vars(one) for one in linears(worker.policy.policy))
