"""The soak study: growth of memory, spread of times, turns, and targets."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from PIL import Image

from benchmarks.cpu import soak, tables
from benchmarks.cpu.results import SoakResult
from edge_vla.data import synthetic_image


@pytest.mark.parametrize(("growth", "expected"), [(0, 0.0), (1 << 20, 10.0), (-(1 << 19), -5.0)])
def test_the_growth_of_memory(growth: int, expected: float) -> None:
    """`growth` bytes every 100 actions; readings while pools still fill are left out."""
    resident = [5 << 30] * 3 + [(1 << 30) + growth * i for i in range(50)]
    assert soak.growth(resident, 3) == pytest.approx(expected)
    assert soak.growth(resident[:4], 3) == 0.0


def test_allocations_by_torch_are_counted() -> None:
    """An operator's own output too, which makes no `aten::empty`."""
    ones, out, frames = torch.ones(8), torch.ones(8), [soak.Shown(Image.new("RGB", (2, 2)), "x", True)] * 5

    def allocating(_: soak.Shown) -> int:
        return len(ones * 2)

    def allocating_nothing(_: soak.Shown) -> int:
        return len(torch.mul(ones, ones, out=out))

    assert soak.allocations(allocating, frames)[0] >= 1
    assert soak.allocations(allocating_nothing, frames)[0] == 0


def test_a_soak_is_held_to_its_targets() -> None:
    reference, ours, alone = (soak.spread(name, [ms] * 100) for name, ms in (("r", 4.0), ("a", 1.0), ("s", 1.0)))
    found = list(soak.targets(reference, [ours], alone, 1.5, 2.0, 0.0))
    assert [target.met for target in found] == [True, True, True, False, False, True]
    result = SoakResult({"int4": "native"}, 1, reference, ours, ours, [alone], alone, 1.5, [1.0], 2.0, 0.0, found)
    table = "\n".join(tables.soak(result))
    assert "| memory growth, MiB per 1000 actions | 1.5 | at most 1 | missed |" in table
    assert "| a | 100 | 1.00 ms | 1.00 ms | 1.00 | 4.00 |" in table
    assert "| s | 100 | 1.00 ms | 1.00 ms | 1.00 |  |" in table, "a control is no faster than anything"


def test_the_spread_of_times() -> None:
    row = soak.spread("a", [float(i) for i in range(1, 101)])
    assert (row.p50_ms, row.actions) == (50.5, 100)
    assert row.p99_over_p50 == pytest.approx(99.01 / 50.5, abs=1e-3)


def test_blocks_alternate_and_all_systems_see_the_same_frames() -> None:
    seen: dict[str, list[int]] = {"a": [], "b": []}
    order = list[str]()

    def system(name: str) -> soak.Act:
        def act(shown: soak.Shown) -> object:
            seen[name].append(id(shown))
            order.append(name)
            return None

        return act

    frames = [soak.Shown(synthetic_image(seed, 8), "go", seed == 0) for seed in range(3)]
    times = soak.in_turns({name: system(name) for name in seen}, frames, 2 * soak.BLOCK)
    assert [len(one) for one in times.values()] == [2 * soak.BLOCK] * 2
    assert seen["a"] == seen["b"]
    assert list(islice(order, 0, None, soak.BLOCK)) == ["a", "b", "b", "a"]
