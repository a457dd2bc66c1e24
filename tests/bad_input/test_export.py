"""An export that cannot finish leaves nothing under its name: wrong options, a full disk, Ctrl-C."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file

import edge_vla.cli
import edge_vla.export.writer
import edge_vla.terminal
from edge_vla.artifact import MANIFEST, Artifact
from edge_vla.errors import EdgeVLAError, ResourceError, UsageError
from edge_vla.export import Recipe, Silent, export
from edge_vla.export.writer import ArtifactWriter
from tests.bad_input.damage import command, nothing_left, refused
from tests.export.crash import KEY

TINY = "random:openvla-tiny"
EARLY = 7  # files written before the graph is traced, which takes seconds

USAGE: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (("--group", "48"), ("--group 48", "does not divide", "64 inputs", "q_proj", "divisor")),
    (("--group", "256"), ("--group 256", "does not divide")),
    (("--group", "1"), ("--group 1", "even divisor")),
    (("--group", "0"), ("--group 0", "even divisor")),
    (("--group", "-64"), ("--group -64", "even divisor")),
    (("--group", "64", "--bits", "8"), ("group 64", "4 bits", "8 bits have none")),
    (("--group", "64", "--bits", "16"), ("group 64", "4 bits", "16 bits have none")),
    (("--bits", "5"), ("bits 5", "choose one of", "[2, 3, 4, 8, 16]")),
    (("--merge-arithmetic", "bf16"), ("--merge-arithmetic bf16", "fp32", "upstream")),
    (("--adapter", "nowhere"), ("--adapter nowhere", "no such directory")),
    (("--recipe", "nowhere.toml"), ("--recipe nowhere.toml", "no such file")),
    (("--recipe", "."), ("--recipe .", "cannot be read")),
    (("--recipe", "broken.toml"), ("--recipe broken.toml", "not valid TOML")),
    (("--recipe", "unknown.toml"), ("unknown key 'bit'", "expected", "'bits'")),
    (("--recipe", "typed.toml"), ("bits: expected int", "'4'")),
    (("--recipe", "truth.toml"), ("bits: expected int", "True")),
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with recipes that are wrong in several ways."""
    recipes = {"broken": "bits = ", "unknown": "bit = 4", "typed": 'bits = "4"', "truth": "bits = true"}
    for name, content in recipes.items():
        (tmp_path / f"{name}.toml").write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("options", "words"), USAGE, ids=[" ".join(options) for options, _ in USAGE])
def test_wrong_options_are_refused(
    options: tuple[str, ...], words: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with nothing_left(place / "out"):
        command(capsys, "export", TINY, "--out", "out", *options).refused_with(UsageError.exit_code, words)


@pytest.mark.parametrize("kind", ["directory", "file", "dangling link"])
def test_what_exists_is_never_overwritten(kind: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = place / "out"
    if kind == "directory":
        out.mkdir()
        (out / "precious").write_text("kept", encoding="utf-8")
    elif kind == "file":
        out.write_text("kept", encoding="utf-8")
    else:
        out.symlink_to(place / "elsewhere")
    with nothing_left(out):
        ended = command(capsys, "export", TINY, "--out", "out")
    ended.refused_with(2, ["--out out", "exists already", "remove it or choose another"])
    if kind != "dangling link":
        assert (out / "precious" if out.is_dir() else out).read_text(encoding="utf-8") == "kept"
    assert not (place / "elsewhere").exists()


@pytest.mark.parametrize(("out", "word"), [("file/out", "Not a directory"), ("x" * 300, "name too long")])
def test_where_nothing_can_be_written(out: str, word: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "file").write_text("", encoding="utf-8")
    with nothing_left(place / "out"):
        command(capsys, "export", TINY, "--out", out).refused_with(ResourceError.exit_code, ["cannot write", word])


def test_one_export_at_a_time(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = ArtifactWriter(place / "out", KEY)
    command(capsys, "export", TINY, "--out", "out").refused_with(2, ["another export", "out", "wait"])
    assert (place / "out.partial").is_dir(), "the first one goes on"
    writer.abandon()
    assert not (place / "out.partial").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_parent(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "shut").mkdir(mode=0o555)
    command(capsys, "export", TINY, "--out", "shut/out").refused_with(5, ["cannot write", "shut", "Permission denied"])


def test_too_little_disk_is_known_before_the_first_byte(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with nothing_left(place / "out"):
        command(capsys, "export", TINY, "--out", "out").refused_with(5, ["out", "needs 248.71 kB", "1.00 kB free"])


class Fails:
    """Calls `original`, but the n-th call leaves half a file, if it writes one, and raises."""

    def __init__(self, original: Callable[..., Any], counter: list[int], n: int, error: Exception) -> None:
        self.original, self.counter, self.n, self.error = original, counter, n, error

    def __get__(self, owner: Any, kind: Any = None) -> Callable[..., Any]:
        return lambda *arguments, **keywords: self(owner, *arguments, **keywords)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        self.counter[0] += 1
        if self.counter[0] != self.n:
            return self.original(*arguments, **keywords)
        for path in arguments:
            if isinstance(path, Path) and path.parent.is_dir():
                with path.open("wb") as file:
                    file.write(b"half")
        raise self.error


def break_write(monkeypatch: pytest.MonkeyPatch, n: int) -> list[int]:
    """Let the disk be full at the n-th file. Returns a counter of files."""
    import onnx_ir

    full, counter = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), [0]
    rust = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    monkeypatch.setattr(edge_vla.export.writer, "save_file", Fails(save_file, counter, n, rust))
    monkeypatch.setattr(Path, "write_bytes", Fails(Path.write_bytes, counter, n, full))
    monkeypatch.setattr(onnx_ir, "save", Fails(onnx_ir.save, counter, n, full))
    return counter


def break_call(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, n: int) -> list[int]:
    counter = [0]
    error = OSError(errno.EIO, os.strerror(errno.EIO))
    monkeypatch.setattr(module, name, Fails(getattr(module, name), counter, n, error))
    return counter


@pytest.mark.parametrize("n", range(1, EARLY + 2))
def test_a_disk_that_fills_leaves_nothing(
    n: int, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last of these is the graph."""
    counter = break_write(monkeypatch, n)
    with nothing_left(place / "out"):
        ended = command(capsys, "export", TINY, "--out", "out")
    assert counter == [n]
    ended.refused_with(5, ["cannot write", "out.partial", "No space left"], lines=None)
    assert n <= EARLY or "vision.onnx" in ended.stderr


def republish(sound: Path, out: Path) -> Artifact:
    """Write a finished artifact again through the writer, as an export ends: every file, draft, manifest, rename."""
    artifact, writer = Artifact(sound), ArtifactWriter(out, KEY)
    try:
        for name in artifact.manifest.files:
            if name.endswith(".safetensors"):
                writer.save(name, artifact.tensors(name))
            else:
                writer.write(name, (sound / name).read_bytes())
        writer.draft(artifact.manifest)
        writer.draft(artifact.manifest)
        writer.publish()
        return Artifact(out)
    except BaseException:
        writer.abandon()
        raise


BREAKS: Mapping[str, Callable[[pytest.MonkeyPatch, int], list[int]]] = {
    "write": break_write,
    "fsync": lambda monkeypatch, n: break_call(monkeypatch, os, "fsync", n),
    "rename": lambda monkeypatch, n: break_call(monkeypatch, Path, "rename", n),
    "replace": lambda monkeypatch, n: break_call(monkeypatch, Path, "replace", n),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_whichever_call_fails_there_is_nothing_or_a_whole_artifact(
    kind: str, place: Path, tiny_artifacts: Mapping[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th call fails, for every n until none is left to fail."""
    failures, messages = 0, list[str]()
    while True:
        out = place / f"out-{failures}"
        with monkeypatch.context() as patch:
            counter = BREAKS[kind](patch, failures + 1)
            try:
                republish(tiny_artifacts[4], out)
            except ResourceError as error:
                messages.append(str(error))
        if counter[0] <= failures:
            break
        failures += 1
        assert not out.with_name(out.name + ".partial").exists()
        if out.exists():  # only the last sync comes after the rename
            Artifact(out).verify()
            assert kind == "fsync"
    Artifact(out).verify()
    assert Artifact(out).identity == Artifact(tiny_artifacts[4]).identity
    assert len(messages) == failures
    assert [line for line in messages if not line.startswith("cannot ") or "\n" in line] == []
    assert failures >= {"write": 10, "fsync": 15, "rename": 1, "replace": 2}[kind]


class Interrupts(Silent):
    """Presses Ctrl-C at the n-th report of an export."""

    def __init__(self, n: int) -> None:
        self.n, self.reports = n, 0

    def stage(self, name: str, steps: int, done: int = 0) -> None:
        self.step(name)

    def step(self, detail: str) -> None:
        self.reports += 1
        if self.reports == self.n:
            raise KeyboardInterrupt


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 9])
def test_ctrl_c_leaves_nothing(n: int, place: Path) -> None:
    """In the decoder, between the stages, after the first files of vision, and at the very last report."""
    progress = Interrupts(n)
    with nothing_left(place / "out"), pytest.raises(KeyboardInterrupt):
        export(TINY, place / "out", Recipe(), progress=progress)
    assert progress.reports == n


def test_ctrl_c_on_the_command_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupts = Interrupts(2)
    monkeypatch.setattr(edge_vla.terminal.Bar, "step", lambda bar, detail: interrupts.step(detail))
    monkeypatch.setattr(edge_vla.terminal.Bar, "stage", lambda bar, name, steps, done: interrupts.stage(name, steps))
    with nothing_left(place / "out"):
        ended = command(capsys, "export", TINY, "--out", "out")
    assert ended.code == 130
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("line", "content", "code", "words"),
    [
        ('{"image": "a.png", "instruction": "go"}', b"no image", 4, ("a.png", "not an image")),
        ('{"image": "b.png", "instruction": "go"}', b"", 4, ("b.png", "no such file")),
        ('{"image": "a.png", "instruction": "go", "unnorm_key": "x"}', None, 2, ("unknown unnorm_key 'x'", "random")),
    ],
)
def test_wrong_golden_frames_are_known_before_anything_is_written(
    line: str, content: bytes | None, code: int, words: tuple[str, ...], place: Path, capsys: Any
) -> None:
    frames = place / "frames"
    frames.mkdir()
    (frames / "frames.jsonl").write_text(line, encoding="utf-8")
    if content is None:
        Image.new("RGB", (28, 28)).save(frames / "a.png")
    else:
        (frames / "a.png").write_bytes(content)
    with nothing_left(place / "out"):
        command(capsys, "export", TINY, "--out", "out", "--frames", frames).refused_with(code, words)


def test_what_a_killed_export_left_is_discarded(place: Path, tiny_artifacts: Mapping[int, Path]) -> None:
    partial = place / "out.partial"
    partial.mkdir()
    (partial / "stale").write_text("", encoding="utf-8")
    republish(tiny_artifacts[8], place / "out")
    assert not partial.exists()
    assert not (place / "out" / "stale").exists()
    assert (place / "out" / MANIFEST).is_file()


def test_a_wrong_recipe_never_reaches_the_disk(place: Path) -> None:
    with nothing_left(place / "out"), pytest.raises(EdgeVLAError) as caught:
        export(TINY, place / "out", Recipe(bits=4, group=48))
    refused(caught, UsageError, ("--group 48", "does not divide"))
