"""The user's cache: who may write it, compiled libraries in it, and tables that stay short."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_vla.bench import predictions
from edge_vla.errors import BackendError
from edge_vla.runtime import store
from edge_vla.runtime.compiled import compiled, compiler


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


@pytest.mark.skipif(compiler() is None, reason="no C compiler here")
def test_c_that_does_not_compile_says_so(tmp_path: Path) -> None:
    (tmp_path / "bad.c").write_text("this is no C")
    with pytest.raises(BackendError, match=r"bad does not compile with .*error: .*EDGE_VLA_NATIVE=0"):
        compiled("bad", ["-shared", str(tmp_path / "bad.c")])


@pytest.mark.skipif(compiler() is None, reason="no C compiler here")
def test_c_is_compiled_once_for_each_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good.c").write_text("int f(void) { return 1; }")
    words = ["-shared", "-fPIC", str(tmp_path / "good.c")]
    first = compiled("good", words, "text 1")
    when = first.stat().st_mtime_ns
    assert compiled("good", words, "text 1") == first
    assert first.stat().st_mtime_ns == when
    assert compiled("good", words, "text 2") != first


def test_without_a_compiler_the_error_names_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match=r"no C compiler \(cc, gcc or clang\): install one"):
        compiled("good", ["good.c"])


@pytest.mark.skipif(compiler() is None, reason="no C compiler here")
def test_a_cache_that_others_may_write_is_typed(tmp_path: Path) -> None:
    store.user_cache().chmod(0o777)
    with pytest.raises(BackendError, match="others: no code is loaded"):
        compiled("good", ["good.c"])


def test_the_table_stays_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MOST", 5)
    for i in range(9):
        store.remember("table.json", f"key {i}", "value")
    assert list(store.remembered("table.json")) == [f"key {i}" for i in range(4, 9)]
