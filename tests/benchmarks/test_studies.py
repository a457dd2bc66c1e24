"""Every study runs as a module from anywhere, says what it answers, and stands in the README's table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import study

STUDIES = [
    path.relative_to(study.ROOT).with_suffix("")
    for path in sorted((study.ROOT / "benchmarks").rglob("*.py"))
    if '"__main__"' in path.read_text(encoding="utf-8") and "gpu" not in path.parts
]
CHILDREN = {"foreign", "linears", "llamacpp"}  # started by a study


def names() -> list[str]:
    return [".".join(path.parts) for path in STUDIES if path.name not in CHILDREN]


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_a_study_runs_from_anywhere(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", name, "--help"],
        cwd=tmp_path,
        env=study.child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"python -m {name}" in done.stdout


def test_the_readme_lists_every_study() -> None:
    text = (study.ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert [name for name in names() if name not in text] == []
