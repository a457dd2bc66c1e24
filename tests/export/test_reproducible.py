"""Two exports of one source give one identity, whatever a stopwatch said about kernels in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import edge_vla
from edge_vla.export import Recipe, export
from edge_vla.runtime.compiled import OFF
from edge_vla.runtime.kernels import probe
from tests.conftest import TINY

TABLE = Path("edge-vla", "prefill.json")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's table of measured kernels, in a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(probe, "_known", {})
    return tmp_path / "cache" / TABLE


def poison(cache: Path, answer: str) -> None:
    """As if the stopwatch had said `answer` for every weight."""
    probe._known.clear()
    table = json.loads(cache.read_text(encoding="utf-8"))
    cache.write_text(json.dumps(dict.fromkeys(table, answer)), encoding="utf-8")


@pytest.mark.parametrize(
    ("bits", "native"),
    [(4, False), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((4, True), (8, False), (8, True)))],
)
def test_the_identity_hangs_on_no_stopwatch(
    bits: int, native: bool, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setenv(OFF, "0")
    made = export(TINY, tmp_path / "first", Recipe(bits=bits))
    assert not cache.exists(), "an export asks no stopwatch"
    edge_vla.load(made.directory, "cpu", "torch", kernel="torch", check=False)  # writes the table
    kernels, identities = set[str](), {made.identity}
    for answer in ("gemv", "gemm"):
        poison(cache, answer)
        identities.add(export(TINY, tmp_path / answer, Recipe(bits=bits)).identity)
        poison(cache, answer)
        loaded = edge_vla.load(made.directory, "cpu", "torch", kernel="torch", check=False)
        kernels.add(loaded.network.kernels["int4" if bits == 4 else "int8"])
    assert len(kernels) == 2, "else the table decides nothing, and this test shows nothing"
    assert len(identities) == 1
