"""What does asking a server cost over acting in process? `python -m benchmarks.serve.overhead --out FILE`. 5 minutes.

One robot, 224 x 224 pixels, loopback. Frames go to all four in turns: a session in this process, our WebSocket, the
policy in this process, and OpenVLA's REST. A turn is IN_A_ROW frames, as a robot asks, and follows one of the other
process: so each finds the caches as the other process left them, and none is warmed by its neighbour.

`--core` keeps client, server and engine, which wait for each other, on one core: on a virtual machine waking an idle
core takes tens of microseconds, four times an observation, and is no work of ours.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice, product
from pathlib import Path
from typing import Final

import torch

import edge_vla
from benchmarks import study
from benchmarks.serve.frames import Frame, frames
from benchmarks.serve.results import OverheadResult, Spread
from benchmarks.serve.server import demo_artifact, serving
from benchmarks.serve.wire import Answer, RestRobot, WebSocketRobot
from benchmarks.study import Target

SIZE: Final = 224
FRAMES: Final = 50
IN_A_ROW: Final = 25  # many more, and REST's keep-alive of five seconds ends meanwhile
ASKING: Final = ("websocket_wire", "websocket_cpu", "rest_wire", "rest_cpu")
WEBSOCKET_MS: Final = 1.0  # over a session in process
REST_MS: Final = 3.0


def measure(artifact: Path, actions: int, in_a_row: int = IN_A_ROW, note: str = "") -> OverheadResult:
    """Raises BackendError where the server does not start."""
    pictures = frames(artifact, FRAMES, SIZE)
    policy = edge_vla.load(artifact)
    torch.set_num_threads(1)
    session = policy.session()
    with serving(artifact, environment={"OMP_NUM_THREADS": "1"}) as server:
        websocket = WebSocketRobot(server.addresses["native"], "websocket")
        rest = RestRobot(server.port, "rest")
        systems: dict[str, Callable[[Frame], object]] = {
            "session": lambda frame: session.act(frame.image, frame.instruction),
            "websocket": lambda frame: websocket.act(frame.image, frame.instruction),
            "policy": lambda frame: policy.act(frame.image, frame.instruction),
            "rest": lambda frame: rest.act(frame.image, frame.instruction),
        }
        times: dict[str, list[float]] = {name: [] for name in (*systems, *ASKING)}
        asked = list(islice(cycle(pictures), in_a_row * -(-actions // in_a_row)))
        turns = [asked[at : at + in_a_row] for at in range(0, len(asked), in_a_row)]
        for index, turn in enumerate([turns[0], *turns]):  # the first warms up
            for (name, act), frame in product(systems.items(), turn):
                computed = 1e3 * time.thread_time() + server.loop_cpu_ms()
                began = time.perf_counter()
                found = act(frame)
                elapsed = 1e3 * (time.perf_counter() - began)
                if index:
                    times[name].append(elapsed)
                    if isinstance(found, Answer):
                        times[f"{name}_wire"].append(elapsed - found.infer_ms)
                        times[f"{name}_cpu"].append(1e3 * time.thread_time() + server.loop_cpu_ms() - computed)
        websocket.close()
        rest.close()
    spreads = {name: Spread.of(values) for name, values in times.items()}
    alone = spreads["session"].p50_ms
    return OverheadResult(
        image=[SIZE, SIZE, 3],
        in_a_row=in_a_row,
        core=sorted(os.sched_getaffinity(0))[0] if len(os.sched_getaffinity(0)) == 1 else None,
        note=note,
        **spreads,
        targets=[
            Target("WebSocket over a session, p50, ms", spreads["websocket"].p50_ms - alone, "at most", WEBSOCKET_MS),
            Target("REST over a session, p50, ms", spreads["rest"].p50_ms - alone, "at most", REST_MS),
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve.overhead", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--artifact", type=Path, help="made from the demo policy where there is none")
    parser.add_argument("--actions", type=int, default=2_000)
    parser.add_argument("--in-a-row", type=int, default=IN_A_ROW, help="of one system before the next has its turn")
    parser.add_argument("--core", type=int, help="where client, server and engine run; anywhere by default")
    parser.add_argument("--note", default="", help="what else the machine does, for the result")
    given = parser.parse_args()
    if given.core is not None:
        os.sched_setaffinity(0, {given.core})  # the server inherits it
    with tempfile.TemporaryDirectory() as scratch:
        artifact = demo_artifact(given.artifact or Path(scratch) / "artifact")
        study.write_result(given.out, measure(artifact, given.actions, given.in_a_row, given.note))


if __name__ == "__main__":
    study.run(main)
