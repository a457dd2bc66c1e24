"""The budget is kept, and no other plan within it has a lower KL cost."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from edge_vla.errors import UsageError
from edge_vla.export.allocation import allocate, pareto, uniform
from edge_vla.export.budget import MIN_SAVING, limit, spend
from edge_vla.export.formats import Format, candidates
from edge_vla.export.recipe import Recipe
from edge_vla.export.sizes import fixed_bytes, linear_weights, vision_bytes
from edge_vla.export.units import KlCosts
from edge_vla.quant import Scheme
from edge_vla.sensitivity import Choice
from edge_vla.spec import OPENVLA_7B, TINY, PolicySpec

Items = list[list[Choice]]


@st.composite
def problems(draw: st.DrawFn, most: int = 6) -> tuple[Items, int]:
    items = []
    for _ in range(draw(st.integers(1, most))):
        weights = draw(st.integers(1, 9))
        costs = sorted(draw(st.lists(st.floats(0, 1), min_size=3, max_size=3)), reverse=True)
        items.append(
            [Choice(str(bits), bits * weights, kl_cost) for bits, kl_cost in zip((2, 4, 8), costs, strict=True)]
        )
    floor = sum(item[0].bytes for item in items)
    return items, draw(st.integers(floor, sum(item[-1].bytes for item in items)))


@given(problems())
def test_equal_to_trying_everything(problem: tuple[Items, int]) -> None:
    items, budget = problem
    plans = [plan for plan in itertools.product(*items) if sum(choice.bytes for choice in plan) <= budget]
    best = min(sum(choice.kl_cost for choice in plan) for plan in plans)
    found = allocate(items, budget)
    assert found.bytes <= budget
    assert found.kl_cost == pytest.approx(best)


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_an_integer_programme(seed: int) -> None:
    rng = np.random.default_rng(seed)
    items = []
    for weights in rng.integers(1, 10, 40).tolist():
        costs = np.sort(rng.random(3))[::-1].tolist()
        items.append(
            [Choice(str(bits), bits * weights, kl_cost) for bits, kl_cost in zip((2, 4, 8), costs, strict=True)]
        )
    budget = sum(item[1].bytes for item in items)
    flat = [choice for item in items for choice in item]
    one = np.zeros((len(items), len(flat)))
    for row, item in enumerate(items):
        one[row, row * len(item) : (row + 1) * len(item)] = 1
    sizes = np.array([[choice.bytes for choice in flat]])
    found = milp(
        np.array([choice.kl_cost for choice in flat]),
        constraints=[LinearConstraint(one, 1, 1), LinearConstraint(sizes, -np.inf, budget)],
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    assert allocate(items, budget).kl_cost == pytest.approx(found.fun, abs=1e-6)


@given(problems())
def test_more_bytes_never_hurt(problem: tuple[Items, int]) -> None:
    curve = pareto(problem[0])
    assert [point.bytes for point in curve] == sorted({point.bytes for point in curve})
    costs = [point.kl_cost for point in curve]
    assert costs == sorted(costs, reverse=True)


@given(problems())
def test_below_the_floor(problem: tuple[Items, int]) -> None:
    floor = sum(item[0].bytes for item in problem[0])
    with pytest.raises(UsageError, match="below the floor"):
        allocate(problem[0], floor - 1)


def kl_costs(spec: PolicySpec, sensitive: str) -> list[KlCosts]:
    """Costs that fall with the bits stored, a hundred times as high for one linear of each layer."""
    layer = {}
    for name, shape in spec.decoder.linears().items():
        scale = 100 if name == sensitive else 1
        bits = [8 * form.bytes(shape) / math.prod(shape) for form in candidates(shape[1], None)]
        layer[name] = [[scale * 2 ** (-2 * each) for each in bits]] * 2
    return [layer] * spec.decoder.layers


def int4_bytes(spec: PolicySpec) -> int:
    form = Format(Scheme.INT4, 128)
    return spec.decoder.layers * sum(form.bytes(shape) for shape in spec.decoder.linears().values())


def test_the_more_sensitive_linear_gets_more_bits() -> None:
    spending = spend(TINY, Recipe(method="gptq", bits_per_weight=4.5), kl_costs(TINY, "mlp.down_proj"))
    bits = {(one.layer, one.name): 8 * one.chosen.bytes / one.weights for one in spending.report.linears}
    assert min(bits[layer, "mlp.down_proj"] for layer in range(2)) > min(bits.values())
    assert spending.report.bits_per_weight <= 4.5
    for one in spending.report.linears:
        assert str(spending.formats[one.layer][one.name]) == one.format


def test_a_budget_is_for_everything() -> None:
    """7B: 4.2 GB leave about 4 bits beside 8-bit towers, and uniform int4 is within the solver's reach."""
    recipe = Recipe(method="gptq", budget=4_200_000_000, vision_bits=8)
    available = limit(OPENVLA_7B, recipe)
    assert available == 4_200_000_000 - fixed_bytes(OPENVLA_7B) - vision_bytes(OPENVLA_7B, 8)
    spending = spend(OPENVLA_7B, recipe, kl_costs(OPENVLA_7B, "mlp.down_proj"))
    assert spending.vision_bits is None, "the recipe has them"
    assert 0.995 * available < spending.report.linears_bytes <= available
    assert 3.5 < 8 * available / linear_weights(OPENVLA_7B.decoder) < 4.5


@pytest.mark.parametrize(("vision_kl_cost", "bits"), [(1e-9, 8), (1e9, 16)])
def test_towers_compete_for_a_budget_too(vision_kl_cost: float, bits: int) -> None:
    """The bytes of int4 beside 16-bit towers: insensitive towers give half of theirs to the linears."""
    linears = int4_bytes(OPENVLA_7B)
    budget = linears + fixed_bytes(OPENVLA_7B) + vision_bytes(OPENVLA_7B, 16)
    recipe = Recipe(method="gptq", budget=budget)
    spending = spend(OPENVLA_7B, recipe, kl_costs(OPENVLA_7B, "mlp.down_proj"), vision_kl_cost)
    report = spending.report
    assert report.vision is not None
    assert spending.vision_bits == report.vision.bits == bits
    assert report.vision.chosen.bytes == vision_bytes(OPENVLA_7B, bits)
    assert report.linears_bytes + fixed_bytes(OPENVLA_7B) + report.vision.chosen.bytes <= budget
    assert (report.linears_bytes > 1.15 * linears) == (bits == 8)


def test_mixing_that_does_not_pay_is_left() -> None:
    """All linears alike: the bytes of int4 in groups of 64 buy just that. A sensitive one is worth mixing for."""
    alike = spend(TINY, Recipe(method="gptq", bits_per_weight=4.25), kl_costs(TINY, "none"))
    assert {form for layer in alike.formats for form in layer.values()} == {(Scheme.INT4, 64)}
    assert alike.report.predicted_kl == alike.report.predicted_kl_uniform
    uneven = spend(TINY, Recipe(method="gptq", bits_per_weight=4.25), kl_costs(TINY, "mlp.down_proj")).report
    assert uneven.predicted_kl_uniform is not None
    assert uneven.predicted_kl == uneven.predicted_kl_mixed < (1 - MIN_SAVING) * uneven.predicted_kl_uniform


@given(problems())
def test_the_best_uniform_plan(problem: tuple[Items, int]) -> None:
    items, budget = problem
    found = uniform(items, budget)
    assert found is not None, "the fewest bits for all are the floor"
    assert len(set(found.picks)) == 1
    assert found.bytes <= budget
    assert found.kl_cost >= allocate(items, budget).kl_cost - 1e-12
    assert uniform(items, sum(item[0].bytes for item in items) - 1) is None


@pytest.mark.parametrize("recipe", [Recipe(method="gptq", bits_per_weight=1.9), Recipe(method="gptq", budget=10**9)])
def test_a_budget_below_the_floor(recipe: Recipe) -> None:
    with pytest.raises(UsageError, match="below their floor"):
        limit(OPENVLA_7B, recipe)
