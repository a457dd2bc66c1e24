"""The README says what the committed results say."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_vla.benchmarks.figures import BEGIN, END, figures, fill
from edge_vla.errors import UsageError

ROOT = Path(__file__).parents[2]


def test_the_readme_is_not_stale() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == fill(readme, figures(ROOT / "benchmarks" / "results"))


def test_every_result_says_how_it_was_measured() -> None:
    import json

    found = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    assert found
    for path in found:
        result = json.loads(path.read_text(encoding="utf-8"))
        said = result.get("environment", result)
        assert {"command", "commit", "device"} <= set(said), path.name


def test_filling() -> None:
    assert fill(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\n\nnew\n{END}\nb"
    with pytest.raises(UsageError, match="no "):
        fill("no markers", "new")
