"""What a check says: a name, what was found, a verdict, and for anything bad the next command."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from edge_vla.errors import ArtifactError, BackendError, ResourceError

BACKEND: Final = BackendError.exit_code
RESOURCE: Final = ResourceError.exit_code
ARTIFACT: Final = ArtifactError.exit_code
SCHEMA: Final = 1


class Verdict(str, Enum):
    """`note`: worth knowing, nothing to do. `warning`: it runs, but slower or less surely. `failure`: it does not."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    FAILURE = "failure"


BAD: Final = (Verdict.WARNING, Verdict.FAILURE)


@dataclass(frozen=True)
class Found:
    """What one check found. ValueError for a warning or a failure without a remedy, which names the next command.

    `exit_code` is that of `edge_vla.errors` which the command returns for a failure; 0 for anything else.
    """

    found: str
    verdict: Verdict = Verdict.OK
    remedy: str = ""
    exit_code: int = 0

    def __post_init__(self) -> None:
        if not self.found.strip():
            raise ValueError("a check says what it found")
        if self.verdict in BAD and not self.remedy.strip():
            raise ValueError(f"a {self.verdict.value} needs a remedy: {self.found}")
        expected = (BACKEND, RESOURCE, ARTIFACT) if self.verdict is Verdict.FAILURE else (0,)
        if self.exit_code not in expected:
            raise ValueError(f"exit code {self.exit_code} of a {self.verdict.value}: expected one of {expected}")


@dataclass(frozen=True, kw_only=True)
class Check(Found):
    """One row of the report. `group` gathers rows, `seconds` is how long the check took."""

    group: str
    name: str
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """All checks of one run. `exit_code`: 0, or the highest of the failures'."""

    schema: int
    version: str
    artifact: str | None
    checks: tuple[Check, ...]
    exit_code: int


def note(found: str) -> Found:
    return Found(found, Verdict.NOTE)


def warning(found: str, remedy: str) -> Found:
    return Found(found, Verdict.WARNING, remedy)


def failure(found: str, remedy: str, exit_code: int = BACKEND) -> Found:
    return Found(found, Verdict.FAILURE, remedy, exit_code)


def exit_code(checks: Iterable[Check]) -> int:
    return max((check.exit_code for check in checks), default=0)
