"""An environment is found by its name, and what is none is refused with what was expected."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from edge_vla.bench.environments import Actor, Environment, resolve
from edge_vla.bench.result import EpisodeRow
from edge_vla.errors import UsageError


class Empty:
    """The least that an environment may be."""

    name, kinds, control_hz = "empty", ("wait",), 5.0

    def run(
        self,
        policy: Actor,
        kind: str,
        first: int,
        count: int,
        delays_ms: Sequence[float] | None = None,
        unnorm_key: str | None = None,
    ) -> list[EpisodeRow]:
        return []


EMPTY = Empty()


def test_it_is_found_by_module_and_attribute() -> None:
    found: Environment = resolve("tests.bench.test_environments:EMPTY")
    assert found is EMPTY


@pytest.mark.parametrize("name", ["world1", "world2"])
def test_the_demo_worlds_are_environments(name: str) -> None:
    found = resolve(f"edge_vla.demo.environments:{name}")
    assert found.kinds == ("pick", "put")
    assert found.control_hz > 0


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("edge_vla.demo.environments", "expected package.module:attribute"),
        (":world1", "expected package.module:attribute"),
        ("a b:c", "expected package.module:attribute"),
        ("no.such.package:world", "install the package"),
        ("edge_vla.demo.environments:world9", "world9"),
        ("edge_vla.demo:BASE", r"got a \w*Path, expected"),
    ],
)
def test_what_is_no_environment(spec: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resolve(spec)
