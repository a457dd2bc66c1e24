"""Kill exports of `random:openvla-tiny` and resume them: `python -m tests.export.crash --random 200 --out FILE`.

Each export is a process of its own, forked when everything is imported, so that a kill -9 is a real one. Three ways:
`--named` kills before and after every call that touches the disk (each write, sync, rename, replace, unlink), one
call an export; `--failing` lets each of these calls fail once, as on a full disk, which must end in a typed error;
`--random N` kills at N random moments, several in one export. However often it was stopped, what is published in the
end must have the identity of an undisturbed export, and no name before that.
Only tracing the vision graph is replaced, by a copy of the graph that the first export traced: it takes eight seconds
and touches no disk.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import logging
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

import edge_vla.export.vision
import edge_vla.export.writer
import edge_vla.files
from edge_vla.artifact import GRAPH, Artifact, Source
from edge_vla.bench.provenance import provenance
from edge_vla.data import Frame, read_frames, synthetic_image, write_frames
from edge_vla.errors import ResourceError
from edge_vla.export import Progress, Recipe, Silent, export
from edge_vla.export.journal import ExportKey
from edge_vla.spec import PolicySpec

LOG: Final = logging.getLogger("tests.export.crash")
SOURCE: Final = "random:openvla-tiny"
RECIPE: Final = Recipe(method="gptq", calibration_frames=12)
FRAMES: Final = 16
KEY: Final = ExportKey(  # of no export: for tests of journal and writer
    source=Source("here", 0),
    settings="0" * 64,
    recipe=Recipe(),
    calibration=None,
    golden="",
    form="artifact",
    edge_vla="1",
    torch="2",
)
HANG: Final = 120.0  # seconds
REFUSED: Final = 5  # exit code


def tiny_frames(folder: Path) -> list[Frame]:
    """Recorded frames for `random:openvla-tiny`, four episodes of four steps."""
    shown = []
    for number in range(FRAMES):
        rng = random.Random(number)
        action = (*(rng.uniform(-0.03, 0.03) for _ in range(6)), float(number % 4 > 1))
        instruction = ("pick up the red block", "open the drawer")[number // 4 % 2]
        frame = Frame(Path(f"{number:02d}.png"), instruction, "random", f"e{number // 4}", number % 4, action)
        shown.append((frame, synthetic_image(number, 40)))
    write_frames(folder, shown)
    return read_frames(folder)


class Death:
    """Kills this process at the n-th event, an event being just before or just after a call that touches the disk.

    With `full` the disk is full at that event, once.
    """

    def __init__(self, at: int | None, full: bool = False) -> None:
        self.at, self.full, self.events = at, full, list[str]()

    def event(self, name: str) -> None:
        self.events.append(name)
        if len(self.events) - 1 == self.at:
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.kill(os.getpid(), signal.SIGKILL)

    def wrap(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self.event(f"before {name}")
            result = original(*arguments, **keywords)
            self.event(f"after {name}")
            return result

        return call

    def arm(self) -> None:
        """For the rest of this process."""
        for module in (edge_vla.export.writer, edge_vla.files):
            for name in ("save_file", "sync"):
                if name in vars(module):
                    setattr(module, name, self.wrap(name, vars(module)[name]))
        os.fsync = self.wrap("fsync", os.fsync)
        for name in ("rename", "replace", "unlink", "write_bytes", "write_text", "mkdir"):
            setattr(Path, name, self.wrap(name, getattr(Path, name)))


class Stage:
    """One place in which exports are made and killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.frames = tiny_frames(folder / "frames")
        whole = export(SOURCE, folder / "whole", RECIPE, frames=self.frames)
        self.identity, self.graph = whole.identity, folder / "whole" / GRAPH
        edge_vla.export.vision.write_graph = self.copy_graph

    def copy_graph(self, spec: PolicySpec, weights: Path, graph: Path) -> None:
        shutil.copyfile(self.graph, graph)

    def run(self, out: Path, death: Death, progress: Progress | None = None) -> int:
        """A forked export; returns its exit code: `REFUSED` after a typed error, negative after a signal."""
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                death.arm()
                try:
                    export(SOURCE, out, RECIPE, frames=self.frames, progress=progress or Silent())
                except ResourceError:
                    os._exit(REFUSED)
                (out.parent / f"{out.name}.events").write_text(json.dumps(death.events), encoding="utf-8")
                os._exit(0)
            os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def run_for(self, out: Path, seconds: float) -> int:
        """The same, killed from outside after a while."""
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                export(SOURCE, out, RECIPE, frames=self.frames)
                os._exit(0)
            os._exit(1)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def check(self, out: Path) -> None:
        """What was published is whole and the same; nothing else was left beside it."""
        artifact = Artifact(out)
        artifact.verify()
        assert artifact.identity == self.identity, f"{out} differs from the export that was left alone"
        assert not out.with_name(out.name + ".partial").exists()
        shutil.rmtree(out)

    def events(self) -> list[str]:
        """Every point at which an undisturbed export can be killed, in order."""
        out = self.folder / "counted"
        assert self.run(out, Death(None)) == 0
        self.check(out)
        names: list[str] = json.loads((self.folder / "counted.events").read_text(encoding="utf-8"))
        return names

    def killed_at(self, number: int) -> None:
        """Killed once, at this event, then left to finish."""
        out = self.folder / "named"
        code = self.run(out, Death(number))
        assert code in (-signal.SIGKILL, 0)
        if out.exists():  # killed after the rename: it is whole already
            return self.check(out)
        assert self.run(out, Death(None)) == 0
        return self.check(out)

    def failing_at(self, number: int) -> None:
        """The disk full at this event, then left to finish."""
        out = self.folder / "failing"
        code = self.run(out, Death(number, full=True))
        assert code == REFUSED, f"a full disk at event {number} is no typed error"
        if not out.exists():  # else only the last sync failed
            assert self.run(out, Death(None)) == 0
        self.check(out)

    def killed_randomly(self, kills: int, rng: random.Random, longest: float) -> Iterator[int]:
        """Kills spread over as many exports as it takes; yields how many each export survived."""
        left = kills
        while left > 0:
            out, survived = self.folder / "random", 0
            while self.run_for(out, rng.uniform(0, longest) if left > 0 else HANG) != 0:
                survived, left = survived + 1, left - 1
                if out.exists():  # killed after the rename: it must be whole already
                    break
            self.check(out)
            yield survived


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.export.crash", description=__doc__)
    parser.add_argument("--named", action="store_true", help="every named kill point")
    parser.add_argument("--failing", action="store_true", help="a full disk at every call that touches it")
    parser.add_argument("--random", type=int, default=0, metavar="N", help="N kills at random moments")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="where the result goes, as JSON")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder))
        began = time.monotonic()
        names = stage.events()
        alone = time.monotonic() - began
        LOG.info("an export alone: %.2f s, %d kill points", alone, len(names))
        named = range(len(names)) if arguments.named else ()
        for number in named:
            stage.killed_at(number)
            if number % 20 == 0:
                LOG.info("kill point %d, %s: resumed bit-identical", number, names[number])
        failing = [number for number, name in enumerate(names) if arguments.failing and name.startswith("before")]
        for number in failing:
            stage.failing_at(number)
            if number % 20 == 0:
                LOG.info("disk full at %d, %s: refused, then resumed bit-identical", number, names[number])
        survived = list(stage.killed_randomly(arguments.random, random.Random(arguments.seed), alone))
        result = {
            "version": 1,
            "kind": "crash",
            "environment": asdict(provenance()),
            "source": SOURCE,
            "identity": stage.identity,
            "named_kill_points": len(named),
            "failing_calls": len(failing),
            "random_kills": sum(survived),
            "exports_that_were_killed_at_random": len(survived),
            "bit_identical": True,
        }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    LOG.info("%s", result)


if __name__ == "__main__":
    main()
