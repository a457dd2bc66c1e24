"""`edge-vla act`: the closed loop, from a camera to a robot, as one command."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from edge_vla.commands.serve import read_token, require_extra
from edge_vla.errors import BackendError, EdgeVLAError, UsageError
from edge_vla.options import Device, Kernel, Preprocessing, StatisticsFile, UnnormKey, Vision, script
from edge_vla.terminal import err, out, say

if TYPE_CHECKING:
    from edge_vla.commands.act_policies import InProcess, Served
    from edge_vla.commands.act_screen import Screen
    from edge_vla.demo.robot import Table
    from edge_vla.robot.faces import ActionSink, Camera
    from edge_vla.robot.loop import Loop
    from edge_vla.robot.units import Declaration

    Actor = InProcess | Served
INTERRUPTED: Final = 130
FIRST_S: Final = 10.0  # for a first picture and the robot's link
DEMO: Final = "demo"
STDOUT: Final = "stdout"
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Cameras = Annotated[
    str | None,
    typer.Option(
        help="0, /dev/video0, http:// (MJPEG), rtsp://, ros2:/TOPIC, rosbridge://HOST:9090/TOPIC, a picture, a video, "
        "a folder of pictures, or demo."
    ),
]
To = Annotated[
    str,
    typer.Option(
        help="tcp://HOST:PORT, tcp+json://HOST:PORT, serial:/dev/ttyUSB0?baud=115200, ros2:/TOPIC, "
        "rosbridge://HOST:9090/TOPIC, stdout, or demo."
    ),
]
Pose = Annotated[str | None, typer.Option(help="Where the robot rests at the start, numbers with commas in its units.")]
Deadline = Annotated[
    float | None, typer.Option(min=1, help="Within which an action must be there; a period by default.")
]


@dataclass(frozen=True)
class Asked:
    """What the command line asks for, apart from the policy."""

    camera: str
    to: str
    pose: tuple[float, ...] | None
    deadline_s: float | None
    seconds: float | None
    log: Path | None


def act(
    artifact: Annotated[Path | None, typer.Argument(help="An artifact; with --server only for its statistics.")] = None,
    instruction: Annotated[str | None, typer.Option(help="What the robot should do.")] = None,
    robot: Annotated[Path | None, typer.Option(help="The robot's declaration (docs/robot.md).")] = None,
    camera: Cameras = None,
    to: To = "stdout",
    rate: Annotated[float | None, typer.Option(min=0.01, help="Actions a second: what robot.toml declares.")] = None,
    server: Annotated[str | None, typer.Option(help="Ask an edge-vla serve at ws://HOST:PORT instead.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="A file with the server's token.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="End after so long.")] = None,
    log: Annotated[Path | None, typer.Option(help="A JSON object a line for every turn.")] = None,
    pose: Pose = None,
    deadline_ms: Deadline = None,
    unnorm_key: UnnormKey = None,
    statistics: StatisticsFile = None,
    dtype: Annotated[str, typer.Option(help="Arithmetic: bf16 or fp32.")] = "bf16",
    device: Device = "auto",
    vision: Vision = "auto",
    kernel: Kernel = "auto",
    preprocess: Preprocessing = "none",
) -> None:
    """Move a robot: picture, action, limits, motor, at a fixed rate, until Ctrl-C brings it to rest (docs/act.md).

    A late action is never sent; a camera or link that fails holds the robot. Not a safety-rated function.
    """
    declared = declaration(robot, to)
    check_rate(rate, declared)
    start, source = numbers(pose, declared), chosen(camera, to)
    asked = Asked(source, to, start, deadline_ms and deadline_ms / 1e3, seconds, log)
    table = demo_table(unnorm_key) if DEMO in (source, to) else None
    words = instructed(instruction, table)

    def here() -> Actor:
        from edge_vla.commands.act_policies import in_process
        from edge_vla.runtime import load

        if artifact is None:
            raise UsageError("which policy? give an ARTIFACT, or --server ws://HOST:PORT")
        err.print(f"loading {artifact}")
        policy = load(artifact, device, vision, dtype=dtype, kernel=kernel, preprocess=script(preprocess))
        return in_process(policy, words, unnorm_key, declared)

    def there() -> Actor:
        require_extra(("msgpack", "websockets"), "client")
        from edge_vla.commands.act_policies import served, statistics_of

        known = statistics_of(artifact, statistics)
        return served(server or "", read_token(token_file), words, unnorm_key, known, declared)

    code = live(asked, declared, here if server is None else there, table, server or str(artifact))
    raise typer.Exit(code)


def live(asked: Asked, robot: Declaration, actor: Callable[[], Actor], table: Table | None, policy: str) -> int:
    """Open camera and link, then the policy, which takes longest; run the loop until it ends. The exit code."""
    from edge_vla.commands.act_screen import Log, Screen, shown
    from edge_vla.robot.loop import Loop, Watcher

    with contextlib.ExitStack() as opened:
        camera = opened_camera(asked.camera, robot, table)
        opened.callback(camera.close)
        sink = opened_sink(asked.to, robot, table)
        opened.callback(sink.close)
        log = None if asked.log is None else opened.enter_context(Log(asked.log))
        mind = actor()
        loop = Loop(robot, camera, mind, sink, mind.statistics, pose=asked.pose, deadline_s=asked.deadline_s)
        screen = Screen(robot, f"{policy} → {robot.name}: {camera.name} → {sink.name}", loop.tally, log)
        loop.watcher = Watcher(screen.on_tick, screen.on_lapse)
        failure, caught = guarded(loop, screen, asked.seconds)
        summary = loop.summary()
        screen.on_end(loop.over, failure, summary)
        if summary.ticks:
            with contextlib.suppress(OSError, SystemExit):  # rich's, where nobody reads it: the run has ended as it has
                (err if asked.to == STDOUT else out).print(shown(summary, robot))
        if not loop.close():
            leave(failure)
    if failure is not None:
        raise failure
    return INTERRUPTED if caught[:1] == [signal.SIGINT] else 0


def guarded(loop: Loop, screen: Screen, seconds: float | None) -> tuple[EdgeVLAError | None, list[int]]:
    """Run it to its end, which a signal may bring; the error that ended it, and the signals that came."""
    caught: list[int] = []

    def end(number: int, frame: object) -> None:  # noqa: ARG001
        caught.append(number)
        if len(caught) == 2:  # whoever cannot wait for the way to rest; a third does not cut the gate's stop short
            raise KeyboardInterrupt
        loop.end(signal.Signals(number).name)

    before = {number: signal.signal(number, end) for number in SIGNALS}
    try:
        loop.prepare(FIRST_S)
        with screen:
            loop.run(seconds)
    except EdgeVLAError as error:
        return error, caught
    except KeyboardInterrupt:
        pass
    finally:
        loop.gate.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    return None, caught


def leave(failure: EdgeVLAError | None) -> None:
    """End the process although the policy hangs: Python would wait for it."""
    say("error", "red", str(failure) if failure else "the policy does not come back; the robot is at rest")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(failure.exit_code if failure else BackendError.exit_code)


def declaration(path: Path | None, to: str) -> Declaration:
    from edge_vla.robot.units import Declaration

    if path is None and to != DEMO:
        raise UsageError("which robot? give --robot robot.toml: docs/robot.md has one to copy")
    if path is None:
        from edge_vla.demo.robot import DECLARATION

        path = DECLARATION
    return Declaration.read(path)


def chosen(camera: str | None, to: str) -> str:
    """The demo's table is looked at where it is moved, or asked for: what it shows moves no other robot by default."""
    if camera is None and to != DEMO:
        raise UsageError("which camera? give --camera 0, or another that edge-vla act --help names")
    return DEMO if camera is None else camera


def check_rate(rate: float | None, robot: Declaration) -> None:
    """Limits are declared for one action: at another rate they would be other limits."""
    declared = 1e3 / robot.period_ms
    if rate is not None and not math.isclose(rate, declared, rel_tol=0.01):
        raise UsageError(
            f"--rate {rate:g}, and {robot.name} declares period_ms = {robot.period_ms:g} ({declared:g} Hz), for which "
            "its limits hold: change one of them"
        )


def numbers(pose: str | None, robot: Declaration) -> tuple[float, ...] | None:
    if pose is None:
        if robot.needs_pose:
            raise UsageError(f"{robot.name} starts from a known pose: give --pose with {robot.dims} numbers, 0.1,0,…")
        return None
    try:
        found = tuple(map(float, pose.split(",")))
    except ValueError as error:
        raise UsageError(f"--pose {pose}: expected {robot.dims} numbers with commas between them") from error
    if len(found) != robot.dims:
        raise UsageError(f"--pose {pose}: {len(found)} numbers, expected {robot.dims}")
    return found


def demo_table(key: str | None) -> Table:
    from edge_vla.demo import statistics_key
    from edge_vla.demo.robot import Table

    return Table(2 if key == statistics_key(2) else 1)


def instructed(instruction: str | None, table: Table | None) -> Callable[[], str]:
    """What is asked of the policy, turn by turn: the demo's tables each have a task of their own."""
    if instruction is not None and instruction.strip():
        return lambda: instruction
    if table is None or instruction is not None:
        raise UsageError('what should the robot do? give --instruction "put the spoon on the towel"')
    return lambda: table.instruction


def opened_camera(source: str, robot: Declaration, table: Table | None) -> Camera:
    from edge_vla.robot.cameras import open_camera
    from edge_vla.robot.cameras.checked import Checked
    from edge_vla.robot.ros2.opening import of_ros, ros_camera

    if source == DEMO and table is not None:
        from edge_vla.demo.robot import TableCamera

        return Checked(TableCamera(table), robot.camera)
    if of_ros(source):
        return Checked(ros_camera(source), robot.camera)
    return Checked(open_camera(source), robot.camera)


def opened_sink(address: str, robot: Declaration, table: Table | None) -> ActionSink:
    from edge_vla.robot.links import open_link
    from edge_vla.robot.links.lines import LineSink
    from edge_vla.robot.ros2.opening import of_ros, ros_sink

    if address == DEMO and table is not None:
        from edge_vla.demo.robot import TableArm

        return TableArm(table)
    if of_ros(address):
        return ros_sink(address, robot)
    return LineSink(sys.stdout) if address == STDOUT else open_link(address, robot.dims)
