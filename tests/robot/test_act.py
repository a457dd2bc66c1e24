"""`edge-vla act` from end to end: the real demo policy, real sockets, real signals; and what it says when it cannot."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import edge_vla
from benchmarks.robot.stream import Stream
from benchmarks.serve.server import demo_artifact, serving, stop
from edge_vla.cli import main
from edge_vla.commands import act
from edge_vla.commands.act_screen import Log, Screen, Unread, counted, shown
from edge_vla.demo import BASE, statistics_key
from edge_vla.demo.robot import DECLARATION, Table
from edge_vla.robot.receiver import Command, Receiver, serve
from edge_vla.robot.ticks import Tally, Tick
from edge_vla.robot.units import Declaration

ROOT = Path(__file__).resolve().parents[2]
SOON = 240.0  # seconds, for a policy to load on a busy machine
POLICY = [str(BASE), "--dtype", "fp32", "--unnorm-key", statistics_key(1)]


@pytest.fixture(autouse=True)
def _stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a policy hangs the command ends its process, which is the tests' own here."""

    def failed(failure: Exception | None) -> None:
        raise AssertionError(f"the policy did not come back: {failure}")

    monkeypatch.setattr(act, "leave", failed)


@pytest.fixture
def declared(tmp_path: Path) -> Path:
    """The demo's arm at 2 Hz, so that a busy machine misses little."""
    return slower(tmp_path / "robot.toml", 500)


def slower(path: Path, period_ms: int) -> Path:
    text = DECLARATION.read_text(encoding="utf-8")
    for old, new in (
        ("period_ms = 200", f"period_ms = {period_ms}"),
        ("max_age_ms = 400", f"max_age_ms = {2 * period_ms}"),
        ("after_ms = 600", f"after_ms = {3 * period_ms}"),
    ):
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


class TableSite:
    """The demo's table behind a socket."""

    def __init__(self) -> None:
        self.table, self.taken, self.rests = Table(1), list[Command](), list[str]()
        self.receiver, self._end = Receiver(7), threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        serve(self.listener, self.receiver, self._act, self.rests.append, lapse_s=1.5, ended=self._end.is_set)

    def _act(self, command: Command) -> None:
        self.taken.append(command)
        self.table.act(np.array(command.values), asked=command.kind == "action")

    def close(self) -> None:
        self._end.set()
        self._thread.join(5.0)
        self.listener.close()


@pytest.fixture
def robot() -> Iterator[TableSite]:
    found = TableSite()
    yield found
    found.close()


def called(*arguments: str) -> int:
    """The exit code of `edge-vla act` in this process."""
    with pytest.raises(SystemExit) as end:
        main(["act", *arguments])
    return int(end.value.code or 0)


def logged(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_demo_s_table_is_camera_and_robot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "turns.jsonl"
    assert called(*POLICY, "--camera", "demo", "--to", "demo", "--seconds", "2", "--log", str(log)) == 0
    start, *turns, end = logged(log)
    turns = [line for line in turns if line["kind"] == "tick"]
    assert (start["kind"], start["rate"], end["kind"], end["error"]) == ("start", 5.0, "end", None)
    assert [turn["number"] for turn in turns] == list(range(10))
    assert end["acted"] + sum(end["missed"].values()) == end["ticks"] == 10
    assert set(end["missed"]) <= {"late", "policy busy", "held"}  # a busy machine
    out = capsys.readouterr()
    assert "10 turns" in out.out
    assert "Traceback" not in out.err


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 0, marks=pytest.mark.slow),
    ],
)
def test_a_signal_brings_the_robot_to_rest_first(
    number: signal.Signals, code: int, robot: TableSite, declared: Path, tmp_path: Path
) -> None:
    """Over a real stream and a real socket, in a process of its own."""
    log = tmp_path / "turns.jsonl"
    with Stream(robot.table.picture, 10) as stream:
        arguments = ["act", *POLICY, "--instruction", robot.table.instruction, "--robot", str(declared)]
        arguments += ["--camera", stream.address, "--to", f"tcp://127.0.0.1:{robot.port}", "--log", str(log)]
        command = [sys.executable, "-m", "edge_vla.cli", *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            until = time.monotonic() + SOON
            while len(robot.taken) < 3 and process.poll() is None and time.monotonic() < until:
                time.sleep(0.02)
            process.send_signal(number)
            out, err = process.communicate(timeout=SOON)
    assert process.returncode == code, err
    assert robot.taken[0].kind == "action"
    assert robot.taken[-1].kind == "stop"
    assert not any(robot.taken[-1].values[:6])
    assert logged(log)[-1]["over"] == number.name
    assert "acted on" in out
    assert "Traceback" not in err


def test_pictures_of_a_folder_become_lines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each action is what the policy by itself says of that picture; a busy machine may be late for some."""
    table, log = Table(1), tmp_path / "turns.jsonl"
    for i in range(3):
        Image.fromarray(table.picture()).save(tmp_path / f"{i}.png")
    patient = slower(tmp_path / "robot.toml", 2000)
    arguments = ["--robot", str(patient), "--camera", str(tmp_path), "--instruction", table.instruction]
    assert called(*POLICY, *arguments, "--to", "stdout", "--log", str(log)) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    turns = [line for line in logged(log) if line["kind"] == "tick"]
    acted = [turn for turn in turns if not turn["missed"]]
    assert [line["values"] for line in lines if line["kind"] == "action"] == [turn["sent"] for turn in acted]
    assert sum(turn["missed"] != "overrun" and turn["missed"] != "policy busy" for turn in turns) == 3
    policy = edge_vla.load(BASE, dtype="fp32")
    for turn in acted:
        image = Image.open(tmp_path / f"{turn['picture'] - 1}.png")
        assert turn["asked"] == policy.act(image, table.instruction, statistics_key(1)).values.tolist()


def refused(capsys: pytest.CaptureFixture[str], code: int, words: str, *arguments: str) -> None:
    assert called(*arguments) == code
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert words in message


def test_what_cannot_be_is_said_before_a_policy_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to, demo = ["--to", "tcp://127.0.0.1:9"], ["--robot", str(DECLARATION)]
    words = ["--instruction", "lift the red block"]
    refused(capsys, 2, "which robot? give --robot", "nowhere", *to)
    refused(capsys, 2, "cannot read", "nowhere", *to, "--robot", str(tmp_path / "gone.toml"))
    refused(capsys, 2, "declares period_ms = 200 (5 Hz)", "nowhere", *to, *demo, "--rate", "10")
    refused(capsys, 2, "what should the robot do", "nowhere", *to, *demo, "--camera", "0")
    refused(capsys, 2, "expected a number or /dev/video0", "nowhere", *to, *demo, *words, "--camera", "nonsense")
    refused(capsys, 2, "expected tcp://HOST:PORT", *POLICY, "--to", "udp://h:1", *demo, *words, "--camera", "demo")
    refused(capsys, 2, "which policy?", *to, *demo, *words, "--camera", "demo")
    refused(capsys, 2, "which camera? give --camera", *POLICY, *to, *demo, *words)  # the demo's moves no real robot
    refused(capsys, 2, "what should the robot do", *POLICY, "--to", "demo", "--instruction", " ")
    refused(capsys, 2, "expected ws://HOST:PORT", *to, *demo, *words, "--server", "http://h:1", "--camera", "demo")
    refused(
        capsys, 5, "edge-vla serve ARTIFACT", *to, *demo, *words, "--server", "ws://127.0.0.1:9", "--camera", "demo"
    )
    refused(capsys, 5, "--log", *POLICY, "--to", "demo", "--log", str(tmp_path / "no" / "log"))
    pose = tmp_path / "pose.toml"
    pose.write_text(DECLARATION.read_text(encoding="utf-8").replace('"delta"', '"absolute"'))
    refused(capsys, 2, "give --pose with 7 numbers", "nowhere", *to, *words, "--robot", str(pose))
    refused(capsys, 2, "2 numbers, expected 7", "nowhere", *to, *words, "--robot", str(pose), "--pose", "1,2")
    refused(capsys, 2, "expected 7 numbers", "nowhere", *to, *words, "--robot", str(pose), "--pose", "here")


def test_a_camera_that_is_not_there_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cv2", reason="pip install 'edge-vla[act]'")
    arguments = ["--robot", str(DECLARATION), "--instruction", "x", "--to", "stdout", "--camera", "/dev/video77"]
    refused(capsys, 5, "ls /dev/video*", *POLICY, *arguments)


def test_a_robot_that_is_not_there_and_one_of_other_dimensions(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], robot: TableSite
) -> None:
    monkeypatch.setattr(act, "FIRST_S", 0.5)
    demo = ["--robot", str(DECLARATION), "--instruction", "lift the red block", "--camera", "demo"]
    refused(capsys, 5, "start the robot's program there", *POLICY, *demo, "--to", "tcp://127.0.0.1:9")
    robot.receiver.dims = 6
    refused(capsys, 5, "takes 6 values", *POLICY, *demo, "--to", f"tcp://127.0.0.1:{robot.port}")
    assert robot.taken == []


def test_a_camera_that_is_lost_ends_a_run_that_may_not_recover(
    tmp_path: Path, declared: Path, robot: TableSite, capsys: pytest.CaptureFixture[str]
) -> None:
    text = declared.read_text(encoding="utf-8").replace("recover = 3", "recover = 0")
    declared.write_text(text.replace("after_ms = 1500", "after_ms = 60000"))  # whatever the machine does meanwhile
    log = tmp_path / "turns.jsonl"
    with Stream(robot.table.picture, 10) as stream:

        def unplug() -> None:
            while len(robot.taken) < 3:
                time.sleep(0.02)
            stream.state = "unplugged"

        threading.Thread(target=unplug, daemon=True).start()
        arguments = ["--instruction", robot.table.instruction, "--robot", str(declared), "--camera", stream.address]
        arguments += ["--to", f"tcp://127.0.0.1:{robot.port}", "--log", str(log)]
        refused(capsys, 5, "declare watchdog.recover in robot.toml", *POLICY, *arguments)
    lines = logged(log)
    assert [line["reason"] for line in lines if line["kind"] == "lapse"] == ["camera unplugged"]
    assert "HTTP 503" in lines[-1]["error"]
    assert not any(robot.taken[-1].values[:6])


@pytest.mark.slow
def test_a_policy_behind_a_server_and_a_server_that_is_killed(
    tmp_path: Path, robot: TableSite, declared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact, log = demo_artifact(tmp_path / "artifact"), tmp_path / "turns.jsonl"
    with serving(artifact, "--unnorm-key", statistics_key(1)) as server, Stream(robot.table.picture, 10) as stream:

        def kill() -> None:
            while len(robot.taken) < 5:
                time.sleep(0.02)
            stop(server.process)

        threading.Thread(target=kill, daemon=True).start()
        address = f"ws://127.0.0.1:{server.port}"
        arguments = ["--instruction", robot.table.instruction, "--robot", str(declared), "--camera", stream.address]
        arguments += ["--to", f"tcp://127.0.0.1:{robot.port}", "--log", str(log), "--seconds", "8"]
        assert called(str(artifact), "--server", address, *arguments) == 0
    end = logged(log)[-1]
    assert end["acted"] >= 4
    assert all(reason.startswith(("server ", "late")) for reason in end["missed"]), end["missed"]
    assert end["missed"].get("server disconnected", 0) >= 2
    assert set(end["lapses"]) == {"server disconnected"}
    assert not any(robot.taken[-1].values[:6])


def told(console: Console) -> tuple[Screen, Tally]:
    tally = Tally()
    screen = Screen(Declaration.read(DECLARATION), "policy → robot", tally, None, console)
    tally.add(Tick(0, 0.0, missed="late", detail="too late"))
    tally.add(
        Tick(1, 0.2, age_ms=40.0, policy_ms=20.0, action_ms=25.0, sent=(0.01,) * 7, causes=(("step",), *[()] * 6))
    )
    return screen, tally


def test_the_panel_shows_what_a_person_at_the_robot_needs() -> None:
    out = io.StringIO()
    screen, _ = told(Console(file=out, force_terminal=True, width=100))
    screen.on_lapse("camera black", "the camera is black: take off its cap")
    console = Console(file=out, width=100)
    console.print(screen.panel(1.0))
    text = out.getvalue()
    for words in ("of 5 Hz", "p50 25 ms p99 25 ms", "at most 400 ms", "1: late 1", "axis 0 (m) step 1", "+0.01 rad"):
        assert words in text
    assert "take off its cap" in text


def test_without_a_terminal_there_are_plain_lines() -> None:
    out = io.StringIO()
    screen, tally = told(Console(file=out, width=300))
    with screen:
        screen._drawn -= 10
        assert tally.last is not None
        screen.on_tick(tally.last)
        screen.on_lapse("link cut", "no link: start the robot's program")
        screen.on_tick(tally.last)
    lines = out.getvalue().splitlines()
    assert lines[0] == "policy → robot"
    assert "acted 1  missed 1: late 1  clamped 1" in lines[1]
    assert "held: no link: start the robot's program" in lines[2]
    assert "moving again" in lines[3]
    assert "\x1b" not in out.getvalue()


def test_the_end_of_a_run_names_the_worst_first() -> None:
    _, tally = told(Console(file=io.StringIO()))
    text = shown(tally.summary(0.4), Declaration.read(DECLARATION))
    assert "2 turns: 1 acted on, missed 1: late 1" in text
    assert counted({"a": 1, "b": 3, "c": 1}) == "5: b 3, a 1, c 1"
    assert counted({}) == "0"


def test_a_full_disk_ends_the_log_and_not_the_robot(capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    log = Log(Path("/dev/full"))
    with log:  # its end writes what is left once more, and once ended the command with an error
        for _ in range(3):
            log.write("tick", {"number": 1})
    assert capsys.readouterr().err.count("No space left on device") == 1


@pytest.mark.parametrize("full", [False, True])
def test_a_screen_that_nobody_reads_ends_the_screen_and_not_the_robot(full: bool) -> None:
    """Nor the gate's thread, which calls `on_lapse`; nor are the robot's commands on stdout sent nowhere."""
    if full and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    reader, writer = os.pipe()
    os.close(reader)
    stdout = os.fstat(sys.stdout.fileno())
    with contextlib.suppress(OSError), Path("/dev/full").open("w") if full else os.fdopen(writer, "w") as file:
        screen = Screen(Declaration.read(DECLARATION), "title", Tally(), None, Unread(file=file))
        with screen:
            screen.on_lapse("late", "too late")
            screen._drawn -= 10
            screen.on_tick(Tick(1, 0.2))
    assert os.path.samestat(os.fstat(sys.stdout.fileno()), stdout)


def begun(arguments: list[str], **how: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "edge_vla.cli", "act", *POLICY, *arguments]
    return subprocess.Popen(command, text=True, **how)


def test_a_reader_that_goes_away_ends_the_run(declared: Path) -> None:
    arguments = ["--robot", str(declared), "--camera", "demo", "--to", "stdout"]
    with begun(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["kind"] == "action"
        process.stdout.close()
        assert process.wait(SOON) == 5
        assert process.stderr is not None
        assert "nobody reads it any more" in process.stderr.read()


@pytest.mark.slow
def test_two_signals_are_one_ctrl_c(tmp_path: Path) -> None:
    log = tmp_path / "turns.jsonl"
    arguments = ["--camera", "demo", "--to", "demo", "--log", str(log)]
    with begun(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + SOON
        while not (log.exists() and '"tick"' in log.read_text()) and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        assert process.wait(SOON) == 130


def test_the_systemd_unit_s_options_are_the_command_s() -> None:
    unit = (ROOT / "packaging" / "systemd" / "edge-vla-act.service").read_text(encoding="utf-8")
    command = next(line.partition("=")[2] for line in unit.splitlines() if line.startswith("ExecStart="))
    words = shlex.split(command)
    assert words[1] == "act"
    shown_help = subprocess.run(
        [sys.executable, "-m", "edge_vla.cli", "act", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200"},
    ).stdout
    assert all(word in shown_help for word in words if word.startswith("--"))
