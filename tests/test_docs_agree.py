"""Where several pages state one thing, they state it alike, and as the code and pyproject.toml have it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_docs import PAGES, ROOT
from tests.test_installs import EXTRAS

USED = [page for page in PAGES if page.name not in ("LOG.md", "REPORT.md", "CHANGELOG.md")]
FILES = [*USED, *sorted((ROOT / "edge_vla").rglob("*.py"))]
STATED = {  # what a page may say of it: a pattern, and what each match must be
    "threads wait asleep": (r"OMP_WAIT_POLICY=(\w+)", {"PASSIVE", "ACTIVE"}),
    "Python of the package": (r"requires-python|edge-vla runs on (3\.\d+)", {"3.10"}),
    "Python of a checkout": (r"Python (3\.\d+) or later", {"3.11"}),
    "Pythons": (r"\b(3\.\d+ to 3\.\d+) \|", {"3.10 to 3.13"}),
    "the server's port": (r"\bws://(?:HOST|127\.0\.0\.1|[\d.]+):(\d+)", {"8000"}),
}


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("fact", STATED)
def test_pages_agree(fact: str) -> None:
    pattern, allowed = STATED[fact]
    found = {said: page.name for page in USED for said in re.findall(pattern, read(page)) if said}
    assert found, fact
    assert set(found) <= allowed, found


def test_only_the_doctor_speaks_of_spinning_threads() -> None:
    """The package sets how threads wait by itself, so no page asks a user to."""
    assert [page.name for page in USED if "OMP_WAIT_POLICY" in read(page)] == ["doctor.md"]


def test_every_extra_that_is_named_is_there() -> None:
    named = {
        extra: path.name
        for path in FILES
        for group in re.findall(r"(?:edge-vla|'\.)\[([a-z\d,]+)\]", read(path))
        for extra in group.split(",")
    }
    assert len(named) > 6
    assert {extra: name for extra, name in named.items() if extra not in EXTRAS} == {}
