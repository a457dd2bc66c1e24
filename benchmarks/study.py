"""What every study shares: entry point, result file, targets, and child processes that can import this checkout.

A result file is a JSON object with `kind`, `version`, `provenance` and the fields of the study's dataclass;
`result_files` reads it. Imports no torch before a result is written: the peak memory of a child process counts what its
parent held when it forked.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Protocol

from edge_vla.errors import EdgeVLAError
from edge_vla.files import write_whole

ROOT: Final = Path(__file__).resolve().parents[1]


class Body(Protocol):
    """A study's result: a frozen dataclass of plain values that names its kind and its version."""

    KIND: ClassVar[str]
    VERSION: ClassVar[int]
    __dataclass_fields__: ClassVar[dict[str, Any]]


@dataclass(frozen=True)
class Target:
    """A figure that was to be reached, and what was measured. The bound is fixed in the code, before any run."""

    name: str
    measured: float
    comparison: Literal["at least", "at most"]
    bound: float

    @property
    def met(self) -> bool:
        return self.measured >= self.bound if self.comparison == "at least" else self.measured <= self.bound


def run(main: Callable[[], None], *loggers: str) -> None:
    """Run a study's `main`; an EdgeVLAError ends it with one line. `loggers` report progress beside `benchmarks`."""
    logging.basicConfig(format="%(asctime)s %(message)s")
    for name in ("benchmarks", *loggers):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"error: {error}")


def child_environment() -> dict[str, str]:
    """Environment of a child Python, started anywhere, that imports `benchmarks` and `edge_vla` from this checkout."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def to_json(body: Body, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a result."""
    head = {"kind": body.KIND, "version": body.VERSION, "provenance": dict(provenance)}
    return {**head, **dataclasses.asdict(body)}


def write_result(path: Path, body: Body) -> None:
    """Write a result with its provenance: command, commit, time, device and versions."""
    from edge_vla.bench.provenance import provenance

    write_whole(path, json.dumps(to_json(body, dataclasses.asdict(provenance())), indent=1) + "\n")
