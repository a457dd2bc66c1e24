"""GPTQ equals the textbook, never errs more than rounding to nearest, and says what it cannot do."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edge_vla.errors import NumericError
from edge_vla.export.gptq import DAMPING, Factor, clipped, factorise, gptq, search_steps
from edge_vla.quant import GRIDS, PackedWeight, Scheme, dequantise, expand_scales, nearest, quantise, unpack_codes

FORMS = [
    (Scheme.INT4, 128),
    (Scheme.INT4, 64),
    (Scheme.INT4, 32),
    (Scheme.UINT4, 128),
    (Scheme.UINT4, 32),
    (Scheme.INT3, 64),
    (Scheme.INT2, 32),
    (Scheme.INT8, None),
]
seeds = st.integers(0, 2**31)


def problem(seed: int, outer: int = 24, inner: int = 256, rows: int = 400) -> tuple[Tensor, Tensor]:
    """A weight, and the Hessian of correlated inputs of very different energy."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inner, inner, generator=generator) / inner**0.5
    x = torch.randn(rows, inner, generator=generator) @ mix * torch.rand(inner, generator=generator).exp()
    return torch.randn(outer, inner, generator=generator) * 0.05, x.T @ x


def textbook(weight: Tensor, hessian: Tensor, scheme: Scheme, group: int | None) -> Tensor:
    """Optimal brain quantisation, one column at a time in float64: round it, spread its error, eliminate it.

    The inverse is kept explicitly and shrunk by Gaussian elimination, as the method is derived; there is no
    Cholesky factor, no block and no lazy update. Only the order and the grid are those of `gptq`.
    """
    energy = hessian.diagonal()
    order = torch.sort(energy.double(), descending=True, stable=True).indices
    shape = (weight.shape[0], weight.shape[1])
    found = search_steps(weight.float(), energy.float(), scheme, group)
    steps, offsets = (expand_scales(part, shape).double() for part in (found.scales, found.offsets()))
    damped = hessian.double() + DAMPING * energy.double().mean() * torch.eye(len(hessian), dtype=torch.float64)
    inverse, left, out = torch.linalg.inv(damped), weight.double().clone(), torch.empty_like(weight, dtype=torch.uint8)
    for column in order.tolist():
        codes = nearest((left[:, column] - offsets[:, column]) / steps[:, column], scheme)
        out[:, column] = codes
        there = GRIDS[scheme].levels(codes) * steps[:, column] + offsets[:, column]
        error = (left[:, column] - there) / inverse[column, column]
        left -= error[:, None] * inverse[column][None]
        inverse -= inverse[:, column, None] * inverse[column][None] / inverse[column, column]
    return out


def output_error(weight: Tensor, packed: PackedWeight, hessian: Tensor) -> float:
    change = (dequantise(packed) - weight).double()
    return float(((change @ hessian.double()) * change).sum())


@pytest.mark.parametrize(("scheme", "group"), FORMS, ids=[f"{scheme.value}-{group}" for scheme, group in FORMS])
def test_equal_to_the_textbook(scheme: Scheme, group: int | None) -> None:
    """Codes, not merely errors. In float32 a column that ties can go either way and takes its row along."""
    weight, hessian = problem(1)
    packed = gptq(weight, factorise(hessian, "w"), scheme, group)
    expected = textbook(weight, hessian, scheme, group)
    rows = (unpack_codes(packed.codes, scheme) == expected).all(dim=1)
    allowed = 0.8 if scheme is Scheme.INT8 else 0.95  # 255 levels come near a tie more often
    assert rows.double().mean() >= allowed


@settings(max_examples=25)
@given(seeds, st.sampled_from(FORMS))
def test_outputs_err_less_than_rounding_to_nearest(seed: int, form: tuple[Scheme, int | None]) -> None:
    weight, hessian = problem(seed)
    ours = output_error(weight, gptq(weight, factorise(hessian, "w"), *form), hessian)
    assert ours < output_error(weight, quantise(weight, *form), hessian)


@settings(max_examples=25)
@given(seeds)
def test_the_factor_is_that_of_the_damped_hessian(seed: int) -> None:
    _, hessian = problem(seed, inner=48, rows=100)
    factor = factorise(hessian, "w")
    energy = hessian.diagonal()
    damped = hessian.double() + DAMPING * float(energy.double().mean()) * torch.eye(48, dtype=torch.float64)
    damped = damped[factor.order][:, factor.order]
    upper = factor.upper.double()
    assert torch.equal(upper, upper.triu())
    assert torch.equal(upper.diagonal(), torch.ones(48, dtype=torch.float64))
    inside = torch.linalg.solve_triangular(upper, damped, upper=True)  # D U'
    between = torch.linalg.solve_triangular(upper, inside.T, upper=True)
    assert torch.allclose(between, torch.diag(between.diagonal()), atol=1e-5 * float(damped.abs().max()))


def test_parts_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = problem(5, outer=40)
    factor = factorise(hessian, "w")
    whole = gptq(weight, factor, Scheme.INT4, 64)
    monkeypatch.setattr("edge_vla.export.gptq.OUTPUTS", 8)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        parts = gptq(weight, factor, Scheme.INT4, 64)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert torch.equal(dequantise(parts), dequantise(whole))


def test_without_correlation_it_rounds_to_nearest() -> None:
    """Nothing to make up for: each column is rounded on the searched grid, and no other moves."""
    weight, _ = problem(2)
    hessian = torch.diag(torch.rand(256, generator=torch.Generator().manual_seed(0)) + 0.5)
    packed = gptq(weight, factorise(hessian, "w"), Scheme.INT4, 64)
    assert packed.scales is not None
    steps = expand_scales(packed.scales.float(), (24, 256))
    assert torch.equal(unpack_codes(packed.codes, Scheme.INT4), nearest(weight / steps, Scheme.INT4))


@settings(max_examples=25)
@given(seeds, st.sampled_from(FORMS))
def test_the_searched_scale_is_never_worse_than_the_whole_range(seed: int, form: tuple[Scheme, int | None]) -> None:
    scheme, group = form
    weight, hessian = problem(seed)
    energy = hessian.diagonal()
    searched = dequantise(clipped(weight, energy, scheme, group))
    whole = dequantise(quantise(weight, scheme, group))
    assert ((searched - weight).square() * energy).sum() <= ((whole - weight).square() * energy).sum() * (1 + 1e-6)


def test_dead_inputs_are_rounded_to_nearest_and_named(caplog: pytest.LogCaptureFixture) -> None:
    weight, hessian = problem(3)
    dead = torch.zeros(256, dtype=torch.bool)
    dead[[3, 77, 200]] = True
    hessian[dead] = 0
    hessian[:, dead] = 0
    with caplog.at_level(logging.WARNING):
        packed = gptq(weight, factorise(hessian, "layer 3, q"), Scheme.INT4, 64)
    assert "layer 3, q: 3 of 256 inputs are never active" in caplog.text
    assert packed.scales is not None
    steps = expand_scales(packed.scales.float(), (24, 256))
    expected = nearest(weight / steps, Scheme.INT4)
    assert torch.equal(unpack_codes(packed.codes, Scheme.INT4)[:, dead], expected[:, dead])


def test_a_singular_hessian_gets_more_damping_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    weight, hessian = problem(4, rows=8)
    with caplog.at_level(logging.WARNING):
        factor = factorise(hessian - 0.05 * hessian.diagonal().mean() * torch.eye(256), "w")
    assert factor.damping > DAMPING
    assert "singular with damping" in caplog.text
    assert torch.isfinite(dequantise(gptq(weight, factor, Scheme.INT4, 64))).all()


@pytest.mark.parametrize(
    ("value", "words"),
    [(torch.nan, "not finite"), (torch.inf, "not finite"), (0.0, "no input")],
)
def test_what_cannot_be_factored_is_refused(value: float, words: str) -> None:
    with pytest.raises(NumericError, match=words):
        factorise(torch.full((32, 32), value), "w")


def test_indefinite_beyond_remedy_is_refused() -> None:
    with pytest.raises(NumericError, match="stays singular"):
        factorise(torch.tensor([[1.0, 100.0], [100.0, 1.0]]), "w")


def test_the_factor_holds_what_it_says() -> None:
    _, hessian = problem(6, inner=32)
    factor = factorise(hessian, "w")
    assert isinstance(factor, Factor)
    assert torch.equal(torch.sort(factor.order).values, torch.arange(32))
    assert (factor.energy[factor.order].diff() <= 0).all()
