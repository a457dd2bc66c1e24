"""Pictures of the server's live page with two robots: `python -m docs.screens docs/images`. Needs Chromium. A minute.

A real server, the demo policy, two robots at their own rates; light and dark, a wide window and a phone's.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from benchmarks.serve.frames import Frame, frames
from benchmarks.serve.server import demo_artifact, serving
from edge_vla.errors import BackendError
from edge_vla.serve.client import ClientError, Robot

BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome")
SCHEMES: Final = {"light": 1, "dark": 0}  # Blink's numbers
WINDOWS: Final = {"wide": (1000, 560), "phone": (390, 1060)}
ROBOTS: Final = {"arm-left": 5.0, "arm-right": 3.0}  # hertz
SEEN_S: Final = 15.0
LOADED_MS: Final = 3000


def drive(address: str, name: str, hertz: float, pictures: list[Frame], stop: threading.Event) -> None:
    """Ask until `stop`, as a robot does. What is refused or late is part of the picture."""
    with Robot(address, name) as robot:
        for number in range(1 << 20):
            frame = pictures[number % len(pictures)]
            with contextlib.suppress(ClientError):
                robot.act(frame.image, frame.instruction, deadline_ms=1000)
            if stop.wait(1 / hertz):
                return


def shoot(browser: str, address: str, out: Path) -> None:
    """One picture for each window and scheme. BackendError where the page's console was not silent."""
    for window, (width, height) in WINDOWS.items():
        for scheme, number in SCHEMES.items():
            with tempfile.TemporaryDirectory() as profile:
                picture = out / f"serve-{window}-{scheme}.png"
                options = [
                    "--headless",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--hide-scrollbars",
                    "--enable-logging=stderr",
                ]
                options += [f"--user-data-dir={profile}", f"--window-size={width},{height}", f"--screenshot={picture}"]
                options += [f"--blink-settings=preferredColorScheme={number}", f"--virtual-time-budget={LOADED_MS}"]
                done = subprocess.run([browser, *options, address], capture_output=True, text=True, check=True)
            if "CONSOLE" in done.stderr:
                raise BackendError(f"the page's console: {done.stderr[-400:]}")


def main() -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise BackendError(f"no browser here: install one of {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as scratch:
        artifact = demo_artifact(Path(scratch) / "artifact")
        pictures, stop = frames(artifact, 32), threading.Event()
        with serving(artifact) as server:
            address = f"127.0.0.1:{server.port}"
            robots = [
                threading.Thread(target=drive, args=(f"ws://{address}", name, hertz, pictures, stop))
                for name, hertz in ROBOTS.items()
            ]
            for robot in robots:
                robot.start()
            try:
                time.sleep(SEEN_S)
                shoot(browser, f"http://{address}/", Path(sys.argv[1]))
            finally:
                stop.set()
                for robot in robots:
                    robot.join()


if __name__ == "__main__":
    main()
