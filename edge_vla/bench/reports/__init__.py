"""Every face of a result: `write` makes the files, the rest renders one of them.

The measurements go to disk first: a report that cannot be made, or a disk that fills, loses none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from edge_vla.bench.reports.action_json import bigger_is_better, smaller_is_better
from edge_vla.bench.reports.card import model_card
from edge_vla.bench.reports.compare import compare
from edge_vla.bench.reports.html import html
from edge_vla.bench.reports.junit import junit
from edge_vla.bench.reports.markdown import markdown
from edge_vla.bench.reports.schema import ResultError, read, serialised, validate
from edge_vla.errors import ResourceError
from edge_vla.files import write_whole

__all__ = [
    "FILES",
    "RESULT",
    "ResultError",
    "compare",
    "html",
    "junit",
    "markdown",
    "model_card",
    "read",
    "validate",
    "write",
]

Result = Mapping[str, Any]

RESULT: Final = "result.json"
REFUSED: Final = "result-refused.json"
FILES: Final[Mapping[str, Callable[[Result, Path], str]]] = {
    "report.md": lambda result, _: markdown(result),
    "report.html": html,
    "junit.xml": lambda result, _: junit(result),
    "benchmark-smaller-is-better.json": lambda result, _: smaller_is_better(result),
    "benchmark-bigger-is-better.json": lambda result, _: bigger_is_better(result),
}


def write(result: Result, out_dir: Path) -> list[Path]:
    """`result.json`, then every report of it; returns what was written. Raw samples are looked for in `out_dir`.

    A result that does not fit the schema is kept as `result-refused.json`, and ResultError is raised.
    """
    text = serialised(result)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"cannot make {out_dir}: {error.strerror}") from error
    try:
        validate(result)
    except ResultError:
        write_whole(out_dir / REFUSED, text)
        raise
    write_whole(out_dir / RESULT, text)
    for name, render in FILES.items():
        write_whole(out_dir / name, render(result, out_dir))
    return [out_dir / name for name in (RESULT, *FILES)]
