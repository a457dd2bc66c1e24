"""The budget is kept, and no other plan within it does less damage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from edge_vla.errors import UsageError
from edge_vla.export.allocation import Choice, allocate, pareto, uniform
from edge_vla.export.budget import WORTH, limit, spend
from edge_vla.export.preflight import fixed_bytes
from edge_vla.export.recipe import Recipe
from edge_vla.export.sensitivity import Damages, forms
from edge_vla.quant import Scheme, stored_bytes
from edge_vla.spec import OPENVLA_7B, TINY, PolicySpec

Items = list[list[Choice]]


@st.composite
def problems(draw: st.DrawFn, most: int = 6) -> tuple[Items, int]:
    items = []
    for _ in range(draw(st.integers(1, most))):
        weights = draw(st.integers(1, 9))
        damages = sorted(draw(st.lists(st.floats(0, 1), min_size=3, max_size=3)), reverse=True)
        items.append(
            [Choice(str(bits), bits * weights, damage) for bits, damage in zip((2, 4, 8), damages, strict=True)]
        )
    floor = sum(item[0].size for item in items)
    return items, draw(st.integers(floor, sum(item[-1].size for item in items)))


@given(problems())
def test_equal_to_trying_everything(problem: tuple[Items, int]) -> None:
    items, budget = problem
    plans = [plan for plan in itertools.product(*items) if sum(choice.size for choice in plan) <= budget]
    best = min(sum(choice.damage for choice in plan) for plan in plans)
    found = allocate(items, budget)
    assert found.size <= budget
    assert found.damage == pytest.approx(best)


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_an_integer_programme(seed: int) -> None:
    luck = np.random.default_rng(seed)
    items = []
    for weights in luck.integers(1, 10, 40).tolist():
        damages = np.sort(luck.random(3))[::-1].tolist()
        items.append(
            [Choice(str(bits), bits * weights, damage) for bits, damage in zip((2, 4, 8), damages, strict=True)]
        )
    budget = sum(item[1].size for item in items)
    flat = [choice for item in items for choice in item]
    one = np.zeros((len(items), len(flat)))
    for row, item in enumerate(items):
        one[row, row * len(item) : (row + 1) * len(item)] = 1
    sizes = np.array([[choice.size for choice in flat]])
    found = milp(
        np.array([choice.damage for choice in flat]),
        constraints=[LinearConstraint(one, 1, 1), LinearConstraint(sizes, -np.inf, budget)],
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    assert allocate(items, budget).damage == pytest.approx(found.fun, abs=1e-6)


@given(problems())
def test_more_bytes_never_hurt(problem: tuple[Items, int]) -> None:
    curve = pareto(problem[0])
    assert [row["bytes"] for row in curve] == sorted({row["bytes"] for row in curve})
    damages = [row["damage"] for row in curve]
    assert damages == sorted(damages, reverse=True)


@given(problems())
def test_below_the_floor(problem: tuple[Items, int]) -> None:
    floor = sum(item[0].size for item in problem[0])
    with pytest.raises(UsageError, match="below the floor"):
        allocate(problem[0], floor - 1)


def damages(spec: PolicySpec, hurt: str) -> list[Damages]:
    """A fall with the bits stored, a hundred times as much for one kind of linear."""
    shapes = spec.decoder.linears()
    each = {
        name: [
            2 ** (-2 * 8 * stored_bytes(scheme, shape, group) / math.prod(shape))
            for scheme, group in forms(shape[1], None)
        ]
        for name, shape in shapes.items()
    }
    layer = {name: [[(100 if name == hurt else 1) * damage for damage in found]] * 2 for name, found in each.items()}
    return [layer] * spec.decoder.layers


def test_what_hurts_more_gets_more() -> None:
    spent = spend(TINY, Recipe(method="gptq", bits_per_weight=4.5), damages(TINY, "mlp.down_proj"))
    bits = {(item.layer, item.name): 8 * item.choices[pick].size / math.prod(item.shape)
            for item, pick in zip(spent.items, spent.plan.picks, strict=True)}  # fmt: skip
    assert min(bits[layer, "mlp.down_proj"] for layer in range(2)) > min(bits.values())
    assert spent.report()["bits_per_weight"] <= 4.5
    assert spent.formats[0]["self_attn.q_proj"][0] in set(Scheme)


def test_a_budget_is_for_everything() -> None:
    """7B: 4.2 GB leave room for about 4 bits beside 8-bit towers, and uniform int4 is within the solver's reach."""
    recipe = Recipe(method="gptq", budget=4_200_000_000, vision_bits=8)
    given_ = limit(OPENVLA_7B, recipe)
    assert given_ == 4_200_000_000 - fixed_bytes(OPENVLA_7B, 8)
    spent = spend(OPENVLA_7B, recipe, damages(OPENVLA_7B, "mlp.down_proj"))
    assert spent.vision_bits is None, "the recipe has said it"
    assert 0.995 * given_ < spent.plan.size <= given_
    weights = sum(stored_bytes(Scheme.BF16, item.shape, None) / 2 for item in spent.items)
    assert 3.5 < 8 * given_ / weights < 4.5


@pytest.mark.parametrize(("damage", "bits"), [(1e-9, 8), (1e9, 16)])
def test_towers_compete_for_a_budget_too(damage: float, bits: int) -> None:
    """The bytes of int4 beside 16-bit towers: cheap towers give their half to the linears, dear ones keep it."""
    linears = OPENVLA_7B.decoder.layers * sum(
        stored_bytes(Scheme.INT4, shape, 128) for shape in OPENVLA_7B.decoder.linears().values()
    )
    recipe = Recipe(method="gptq", budget=linears + fixed_bytes(OPENVLA_7B, 16))
    spent = spend(OPENVLA_7B, recipe, damages(OPENVLA_7B, "mlp.down_proj"), damage)
    assert spent.vision_bits == bits
    assert spent.report()["vision"]["bits"] == bits
    assert spent.report()["linears_bytes"] + fixed_bytes(OPENVLA_7B, bits) <= recipe.budget
    assert (spent.report()["linears_bytes"] > 1.15 * linears) == (bits == 8)


def test_mixing_that_is_not_worth_it_is_left() -> None:
    """All linears alike: the bytes of int4 in groups of 64 buy just that. One that stands out is worth mixing for."""
    alike = spend(TINY, Recipe(method="gptq", bits_per_weight=4.25), damages(TINY, "none"))
    assert {item.formats[pick] for item, pick in zip(alike.items, alike.plan.picks, strict=True)} == {(Scheme.INT4, 64)}
    assert alike.plan == alike.same
    uneven = spend(TINY, Recipe(method="gptq", bits_per_weight=4.25), damages(TINY, "mlp.down_proj"))
    assert uneven.same is not None
    assert uneven.plan == uneven.mixed
    assert uneven.plan.damage < (1 - WORTH) * uneven.same.damage


@given(problems())
def test_the_best_uniform_plan(problem: tuple[Items, int]) -> None:
    items, budget = problem
    found = uniform(items, budget)
    assert found is not None, "the fewest bits for all are the floor"
    assert len(set(found.picks)) == 1
    assert found.size <= budget
    assert found.damage >= allocate(items, budget).damage - 1e-12
    assert uniform(items, sum(item[0].size for item in items) - 1) is None


@pytest.mark.parametrize("recipe", [Recipe(method="gptq", bits_per_weight=1.9), Recipe(method="gptq", budget=10**9)])
def test_a_budget_below_the_floor(recipe: Recipe) -> None:
    with pytest.raises(UsageError, match="below their floor"):
        limit(OPENVLA_7B, recipe)
