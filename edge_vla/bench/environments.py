"""Closed-loop environments: what one must offer, and how the one named on the command line is found.

Lock-step (no delays) waits for each action, which isolates numerical differences. With delays the environment runs on
at the control rate while the policy computes, so a slow policy runs out of time. Knows no environment itself.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from PIL import Image

from edge_vla.bench.result import EpisodeRow
from edge_vla.errors import UsageError
from edge_vla.runtime import Action


class Actor(Protocol):
    """A policy, as far as an environment needs it."""

    def act(self, image: Image.Image, instruction: str, unnorm_key: str | None = None) -> Action: ...


@runtime_checkable
class Environment(Protocol):
    """A set of tasks with fixed starts. The same `kind`, `first` and `count` are the same starts every time."""

    @property
    def name(self) -> str: ...
    @property
    def kinds(self) -> Sequence[str]: ...
    @property
    def control_hz(self) -> float: ...

    def run(
        self,
        policy: Actor,
        kind: str,
        first: int,
        count: int,
        delays_ms: Sequence[float] | None = None,
        unnorm_key: str | None = None,
    ) -> list[EpisodeRow]:
        """`count` episodes of one kind of task from start number `first` on, a row each, in the order of starts.

        `delays_ms` are measured times from image to action, used in turn; None waits for each action.
        """


def resolve(spec: str) -> Environment:
    """The environment at `package.module:attribute`. Raises UsageError where that is none."""
    expected = "expected package.module:attribute of an object like edge_vla.bench.environments.Environment"
    if ":" not in spec:
        raise UsageError(f"--env {spec}: {expected}")
    try:
        found: object = pkgutil.resolve_name(spec)
    except ValueError as error:
        raise UsageError(f"--env {spec}: {expected}") from error
    except ImportError as error:
        raise UsageError(f"--env {spec}: {error}; install the package or add its folder to PYTHONPATH") from error
    except AttributeError as error:
        raise UsageError(f"--env {spec}: {error}; {expected}") from error
    if not isinstance(found, Environment):
        raise UsageError(f"--env {spec}: got a {type(found).__name__}, {expected}")
    return found
