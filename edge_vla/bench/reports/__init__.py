"""What is made of a result: the files beside it, a model card, and what changed since another result.

The measurements go to disk first: a report that cannot be made, or a full disk, loses none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from edge_vla.bench import result_file
from edge_vla.bench.reports.brief import Line, columns, lines
from edge_vla.bench.reports.compare import compare
from edge_vla.bench.reports.documents import html, markdown, model_card
from edge_vla.bench.result import Result
from edge_vla.bench.result_file import ResultError, read
from edge_vla.files import write_whole

__all__ = [
    "FILES",
    "Line",
    "ResultError",
    "columns",
    "compare",
    "html",
    "left_behind",
    "lines",
    "markdown",
    "model_card",
    "read",
    "write",
]

RAW: Final = ("latency-*.npz", "episodes-*.json")  # what reports and figures were computed from
FILES: Final[Mapping[str, Callable[[Result], str]]] = {"report.md": markdown, "report.html": html}


def write(result: Result, directory: Path) -> list[Path]:
    """Write `result.json`, `report.md` and `report.html`; returns their paths. Raises ResultError, ResourceError."""
    written = [result_file.write(result, directory)]
    for name, render in FILES.items():
        write_whole(directory / name, render(result))
        written.append(directory / name)
    return written


def left_behind(directory: Path) -> list[Path]:
    """Every file of an earlier bench in the directory; none of anything else."""
    patterns = (result_file.FILE, result_file.REFUSED, *FILES, *RAW)
    return sorted(path for pattern in patterns for path in directory.glob(pattern))
