"""The user's cache: who may write it, compiled libraries in it, and tables that stay short."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from edge_vla.bench import predictions
from edge_vla.errors import BackendError
from edge_vla.runtime import compiled as compiling
from edge_vla.runtime import store
from edge_vla.runtime.compiled import CannotCompileError, compiled, compiler, sealed


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


@pytest.mark.skipif(compiler() is None, reason="no C compiler here")
@pytest.mark.parametrize("damage", ["cut", "zeros", "flipped", "foreign"])
def test_a_kept_library_that_is_not_whole_is_made_again(tmp_path: Path, damage: str) -> None:
    """Power that goes, a full disk: a file cut short would end the process by SIGBUS when it is loaded."""
    (tmp_path / "good.c").write_text("int f(void) { return 1; }")
    words = ["-shared", "-fPIC", str(tmp_path / "good.c")]
    kept = compiled("good", words)
    whole = kept.read_bytes()
    flipped = whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]
    kept.write_bytes({"cut": whole[:4096], "zeros": bytes(len(whole)), "flipped": flipped, "foreign": b"x"}[damage])
    assert not sealed(kept)
    assert compiled("good", words) == kept
    assert kept.read_bytes() == whole


def fake(monkeypatch: pytest.MonkeyPatch, directory: Path, script: str) -> None:
    """Another `cc` before the real one."""
    (directory / "cc").write_text(script)
    (directory / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.defpath}")


def test_a_compiler_that_does_not_start_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, tmp_path, "neither a program nor a script")
    with pytest.raises(CannotCompileError, match=r"cc does not run: .*EDGE_VLA_NATIVE=0"):
        compiled("good", ["good.c"])


def test_a_compiler_that_hangs_is_ended_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, tmp_path, "#!/bin/sh\ncase $1 in --version) ;; *) sleep 60; echo;; esac\n")
    monkeypatch.setattr(compiling, "PATIENCE", 0.5)
    started = time.monotonic()
    with pytest.raises(CannotCompileError, match="did not end within"):
        compiled("good", ["good.c"])
    assert time.monotonic() - started < 30  # its child would have held the pipe for a minute
    assert not list(store.user_cache().iterdir())


def test_a_compiler_that_makes_nothing_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, tmp_path, "#!/bin/sh\nexit 0\n")
    with pytest.raises(BackendError, match=r"does not compile with .*made no file"):
        compiled("good", ["good.c"])


def test_the_table_stays_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MOST", 5)
    for i in range(9):
        store.remember("table.json", f"key {i}", "value")
    assert list(store.remembered("table.json")) == [f"key {i}" for i in range(4, 9)]
