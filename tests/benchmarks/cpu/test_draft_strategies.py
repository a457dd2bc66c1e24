"""Draft strategies: what each guesses, and what a simulated tree may claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

import edge_vla
from benchmarks.cpu.draft_strategies import STRATEGIES, Heads, Known, Transitions, Tree
from edge_vla.data import synthetic_image
from edge_vla.runtime import Policy
from edge_vla.runtime.session import repeat
from edge_vla.runtime.types import Bins, Draft

DIMS = 7


def known(past: Sequence[Bins], plain: Bins = (0, 0, 0)) -> Known:
    rows = torch.zeros(2, 4)
    heads = {with_past: Heads(rows, [None, None], [plain, plain], 64, with_past) for with_past in (False, True)}
    return Known(past, 64, rows[0], Transitions.count([[(10, 20, 63), (11, 20, 62)]]), heads, plain, True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("previous", [10, 20, 63]),
        ("previous, kept", [10, 20, 63]),
        ("velocity", [12, 15, 63]),
        ("transitions", [11, 20, 62]),
        ("neighbours, 8 rows", [10, 20, 63]),
        ("head", [0, 0, 0]),
    ],
)
def test_the_first_guess(name: str, expected: list[int]) -> None:
    draft = STRATEGIES[name](known([(10, 20, 63), (8, 25, 60)]))
    assert draft is not None
    assert draft((), ()) == expected


def test_after_a_miss() -> None:
    guessed, kept = (STRATEGIES[name](known([(10, 20, 63)])) for name in ("previous", "previous, kept"))
    assert guessed is not None
    assert kept is not None
    assert guessed([9], [9, 8]) == [9, 8, 63]
    assert kept([9], [9, 8]) == [10, 20, 63]


def test_transitions_count_what_followed() -> None:
    episodes = [[(1, 5), (1, 6), (2, 6), (1, 5)], [(1, 5), (1, 9)], []]
    table = Transitions.count(episodes)
    assert table.after((1, 5)) == (1, 6), "6 and 9 followed 5 once each: the nearer one"
    assert table.after((2, 9)) == (1, 9), "nothing followed 9: it stays"
    assert table.after((1, 5, 7)) == (1, 6, 7)


@pytest.mark.parametrize("past", [False, True])
def test_heads_learn_what_a_linear_map_can_express(past: bool) -> None:
    """The first dimension is the sign of a hidden unit; the second repeats itself, which only the past shows."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(600, 8, generator=generator)
    second = torch.randint(0, 8, (600,), generator=generator).tolist()
    actions = [(int(row[3] > 0), bin) for row, bin in zip(hidden, second, strict=True)]
    before: list[Bins | None] = [(0, bin) for bin in second]
    heads = Heads(hidden, before, actions, 8, past)
    found = [heads(row, one) for row, one in zip(hidden, before, strict=True)]
    first, again = (sum(ours[i] == true[i] for ours, true in zip(found, actions, strict=True)) / 600 for i in (0, 1))
    assert first > 0.9
    assert (again > 0.9) == past


@pytest.fixture(scope="module")
def policy(tiny_artifacts: Mapping[int, Path]) -> Policy:
    return edge_vla.load(tiny_artifacts[4], "cpu", check=False)


def truth(policy: Policy) -> Bins:
    tokens = policy.act(synthetic_image(0, 28), "go", bitwise_exact=True).tokens
    return tuple(token - policy.config.spec.action.first for token in tokens)


def passes(policy: Policy, draft: Draft | None) -> int:
    action = policy.act(synthetic_image(0, 28), "go", draft=draft, bitwise_exact=True)
    assert action.tokens == policy.act(synthetic_image(0, 28), "go", bitwise_exact=True).tokens
    return action.passes - (draft.saved_passes if isinstance(draft, Tree) else 0)


def off(plain: Bins, dim: int, by: int) -> Bins:
    return (*plain[:dim], plain[dim] + (by if plain[dim] < 32 else -by), *plain[dim + 1 :])


def test_a_neighbour_before_the_last_dimension_ends_the_action(policy: Policy) -> None:
    plain = truth(policy)
    near = off(plain, DIMS - 2, 1)
    assert passes(policy, repeat(near, DIMS)) == 2
    assert passes(policy, Tree(near, plain, 16, True)) == 1
    assert passes(policy, Tree(near, plain, 8, True)) == 2, "eight rows hold neighbours of the first dimension only"


@pytest.mark.parametrize("dim", range(DIMS))
def test_neighbours_never_cost_a_pass_and_help_by_one_bin_only(policy: Policy, dim: int) -> None:
    plain = truth(policy)
    for by in (1, 2):
        wrong = off(plain, dim, by)
        assert passes(policy, Tree(wrong, plain, 16, True)) <= passes(policy, repeat(wrong, DIMS))
    far = tuple((bin + 7) % 64 for bin in plain)
    unaided = passes(policy, repeat(far, DIMS))
    assert passes(policy, Tree(far, plain, 2, True)) == unaided, "two rows hold no neighbour"
