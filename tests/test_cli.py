"""Each command as a user types it: what stands on standard output, what on standard error, and the exit code."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import typer

import edge_vla
from edge_vla import errors
from edge_vla.cli import app, main
from edge_vla.commands.bench import require_bench
from edge_vla.data import synthetic_image
from edge_vla.errors import BackendError
from edge_vla.errors import EdgeVLAError as Base
from edge_vla.options import RENAMED
from tests.conftest import TINY

PACKAGE = Path(edge_vla.__file__).parent


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "camera.png"
    synthetic_image(0, 28).save(path)
    return str(path)


def test_export_verify_inspect_run(tmp_path: Path, picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "artifact")
    assert call("export", TINY, "--bits", "8", "--out", out) == 0
    shown = capsys.readouterr()
    assert not shown.out
    assert "decoder 2/2" in shown.err, "a line a layer where there is no terminal"
    assert "s left" in shown.err
    assert "worst error" in shown.err
    assert call("verify", out) == 0
    verified = capsys.readouterr()
    assert verified.out.startswith("ok ")
    assert "golden frames: 1 of 1" in verified.err
    assert call("inspect", out, "--json") == 0
    described = json.loads(capsys.readouterr().out)
    assert {part["format"] for part in described["parts"]} == {"16 bits", "int8"}
    assert described["facts"]["made from"] == TINY
    assert call("run", out, "--image", picture, "--instruction", "open the drawer", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["tokens"]) == len(answer["action"]) == 7
    assert answer["kernels"]["int8"] not in ("", "reference")
    assert call("run", out, "--image", picture, "--instruction", "open the drawer", "--vision", "onnx") == 0
    assert "random" in capsys.readouterr().err


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("edge_vla.commands.bench.find_spec", lambda name: None if name == "scipy" else name)
    with pytest.raises(BackendError, match=r"needs scipy: pip install 'edge-vla\[bench\]'"):
        require_bench()


def test_inspect_counts_every_parameter_of_the_7b(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("inspect", "random:openvla-7b", "--json") == 0
    parts = json.loads(capsys.readouterr().out)["parts"]
    assert sum(part["parameters"] for part in parts) == 7_541_237_184
    assert sum(part["tensors"] for part in parts) == 982


def test_full_head_is_for_checkpoints(
    picture: str, tiny_artifacts: Mapping[int, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ("--image", picture, "--instruction", "x", "--head", "full", "--json")
    assert call("run", str(tiny_artifacts[8]), *ask) == 2
    assert "no full head" in capsys.readouterr().err
    assert call("run", TINY, *ask) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["clipped"]) == 7


def test_a_hub_id_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert call("inspect", "openvla/openvla-7b@0123abc") == 4
    assert "could not be fetched" in capsys.readouterr().err


def flags(command: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))


def test_a_flag_that_a_message_names_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Texts of the package that name a flag of `edge-vla`; other programs' and modules' own are named here."""
    monkeypatch.setenv("COLUMNS", "200")
    commands = vars(typer.main.get_command(app))["commands"]
    known = set().union(*(flags(command, capsys) for command in commands))
    others = {"--query-compute-apps", "--query-gpu", "--format", "--version", "--upgrade", "--schema", "--porcelain"}
    others |= {"--system-site-packages", "--clock", "--qos-durability", "--show-types"}  # of venv and ros2
    others |= {old for _, old in RENAMED} | {"--listen", "--port", "--baud", "--dims"}  # robot/receiver.py's own
    named = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if "doctor" in file.parts and "edge-vla" not in node.value:
                    continue  # a remedy of another program; all remedies are parsed by tests/device
                named |= set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", node.value))
    assert named - known - others == set()


def test_help_names_what_may_be_chosen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from edge_vla.bench.latency import PROFILES
    from edge_vla.bench.peers import PEERS
    from edge_vla.bench.plan import FLOORS
    from edge_vla.commands.bench import ENVIRONMENTS
    from edge_vla.device.devices import DEVICES

    monkeypatch.setenv("COLUMNS", "400")
    for command, names in (("bench", [*PROFILES, *PEERS, *FLOORS, *ENVIRONMENTS]), ("plan", list(DEVICES))):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown = re.sub(r"\s+", " ", re.sub(r"-\n\s+", "-", capsys.readouterr().out))
        assert [name for name in names if name not in shown] == []


def test_no_help_text_is_cut_at_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in ("", *vars(typer.main.get_command(app))["commands"]):
        with pytest.raises(SystemExit):
            main([*command.split(), "--help"])
        shown = capsys.readouterr().out
        assert not re.search(r"-[a-z]+…", shown)
        assert "..." not in re.sub(r"[A-Z\]}]\.\.\.", "", shown), (
            f"{command}: what can be repeated may be followed by dots"
        )
        assert max(map(len, shown.splitlines())) <= 80


def test_the_exit_codes_stand_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    codes = {error.exit_code for error in vars(errors).values() if isinstance(error, type) and issubclass(error, Base)}
    assert codes <= {int(code) for code in re.findall(r"^ +(\d+)  ", shown, re.M)}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
@pytest.mark.parametrize("command", [("--help",), ("inspect", TINY), ("inspect", TINY, "--json"), ("plan",)])
def test_output_that_cannot_be_written(command: tuple[str, ...]) -> None:
    """A full disk is said, a reader that has gone is not; neither is a traceback."""
    arguments = [sys.executable, "-m", "edge_vla", *command]
    arguments += ["--device", "thor"] if command == ("plan",) else []
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, "No space left on device" in done.stderr) == (5, True), done.stderr
    assert "Traceback" not in done.stderr
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
