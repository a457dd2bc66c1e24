"""The user's cache: who may write it, compiled libraries in it, and tables that stay short."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from edge_vla.bench import predictions
from edge_vla.runtime import store
from edge_vla.runtime.compiled import compiled


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_code_is_not_loaded_from_a_cache_that_others_may_write() -> None:
    store.user_cache().chmod(0o777)
    with pytest.raises(OSError, match="others"):
        store.user_cache()


def test_predictions_kept_first_leave_a_cache_that_code_may_be_loaded_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGE_VLA_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "fresh"))
    (tmp_path / "answer").write_bytes(b"x")
    before = os.umask(0o002)
    try:
        predictions.store("key", tmp_path / "answer")
    finally:
        os.umask(before)
    assert (store.user_cache() / "predictions" / "key.npz").exists()


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
def test_c_that_does_not_compile_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "bad.c").write_text("this is no C")
    assert compiled("bad", [tmp_path / "bad.c"], [tmp_path / "bad.c"], ()) is None
    assert "torch's operators run instead" in caplog.text
    assert "error" in caplog.text


def test_the_table_stays_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MOST", 5)
    for i in range(9):
        store.remember("table.json", f"key {i}", "value")
    assert list(store.remembered("table.json")) == [f"key {i}" for i in range(4, 9)]
