"""Commands that pages show: each parses with the options of today; those of the task pages run, in the page's order."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from edge_vla.cli import app
from edge_vla.demo import ADAPTER, BASE
from edge_vla.demo.record import record
from edge_vla.demo.render import world
from edge_vla.demo.world import FRAME_SEEDS
from tests.hub_stub import serving, use
from tests.test_cli import call

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TASKS = ("walk.md", "which-bits.md", "robot-needs.md", "when-wrong.md")


def commands(page: Path) -> list[list[str]]:
    """The `edge-vla` lines of a page's blocks, but for comments and those with something left out."""
    text = re.sub(r"\\\n\s+", " ", page.read_text(encoding="utf-8"))
    fenced = "\n".join(re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```", text, re.M | re.S))
    lines = [*re.findall(r"^ {4}(edge-vla [a-z].*)$", text, re.M), *re.findall(r"^(edge-vla [a-z].*)$", fenced, re.M)]
    return [shlex.split(line, comments=True)[1:] for line in lines if "..." not in line and "…" not in line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_parses(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    for name, *arguments in commands(page):
        if any(character in " ".join(arguments) for character in "[]|<>") and name != "pull":
            continue  # a synopsis
        assert name in group.commands, f"{page.name}: edge-vla {name}"
        group.commands[name].make_context(name, list(arguments))


def pictures(directory: Path) -> None:
    """The expert's frames in the demo world, and one of them as the camera's picture."""
    record(directory / "my-frames", None, world(2), FRAME_SEEDS[:1])
    shutil.copy(next((directory / "my-frames").glob("*.png")), directory / "camera.png")


def here(arguments: list[str]) -> list[str]:
    """The demo policy in place of what a page names: its base, and quickly measured."""
    named = {"openvla/openvla-7b": str(BASE)}
    given = [named.get(word, word) for word in arguments]
    if given[0] == "bench":
        quick = {"--limit": "6", "--profile": "brief"}
        given += [word for option, value in quick.items() if option not in given for word in (option, value)]
    if given[0] == "export":
        given += ["--calibration-frames", "8"]
    return given


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with what the pages suppose, and a Hub."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ADAPTER, tmp_path / "my-adapter")
    pictures(tmp_path)
    with serving() as hub:
        use(hub, tmp_path / "cache", monkeypatch)
        yield tmp_path


@pytest.mark.slow
def test_the_task_pages_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a fine-tune to a robot first: what it makes, the others use. A gate may be red on so few frames."""
    for name in TASKS:
        for arguments in commands(ROOT / "docs" / name):
            code, said = call(*here(arguments)), capsys.readouterr()
            allowed = {0, 1} if arguments[0] == "bench" else {0}
            assert code in allowed, f"{name}: edge-vla {shlex.join(arguments)}: {said.err[-600:]}"
            if arguments[:2] == ["run", "my-policy"] and "--images" in arguments:
                assert len([json.loads(line) for line in said.out.splitlines()]) >= 8
    assert (place / "evidence" / "report.html").is_file()
    assert (place / "my-policy-there" / "manifest.json").is_file()


def test_the_table_of_formats_is_the_readmes() -> None:
    rows = re.findall(r"^\|.*\|$", (ROOT / "docs" / "which-bits.md").read_text(encoding="utf-8"), re.M)
    ours = rows[rows.index(next(row for row in rows if "the demo policy, world 1" in row)) :]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(ours) > 8
    assert [row for row in ours if row not in readme] == []
