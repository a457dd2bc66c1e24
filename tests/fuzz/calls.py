"""Each call ends as a user should see it: done, or a typed error in one line with an exit code of the table.

What may be given is read from the commands and signatures themselves; the values are what people and programs pass by
mistake. A call that takes a minute, raises anything else, or says "a fault of edge-vla" is a finding.
"""

from __future__ import annotations

import inspect
import io
import os
import random
import re
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

import numpy as np
import torch
import typer
from PIL import Image

import edge_vla
from edge_vla.cli import BUG, EXIT_CODES, app, main
from edge_vla.data import synthetic_image
from edge_vla.errors import EdgeVLAError

LONGEST_S: Final = 60
CODES: Final = frozenset(int(code) for code in re.findall(r"^ +(\d+)  ", EXIT_CODES, re.M)) - {BUG}
# They would run for long, or for ever, on sound input: theirs never is.
HEAVY: Final = frozenset({"export", "bench", "serve", "act", "ros2", "demo"})
NOWHERE: Final = ("nowhere", "./nowhere", "org/name", "random:nothing", "", "a/b/c", "picture.png")
WORDS: Final = (
    *(
        "",
        " ",
        "x",
        "auto",
        "cpu",
        "cuda",
        "cuda:0",
        "bf16",
        "fp64",
        "true",
        "None",
        "all",
        "-1",
        "0",
        "3",
        "1.5",
        "nan",
    ),
    *(
        "inf",
        "1e400",
        "٣",
        "ü",
        "\udcff",
        "🤖",
        "a" * 5000,
        "--",
        "-v",
        "=",
        "{}",
        "[1, 2]",
        "p99=",
        "p99=-1ms",
        "a=b=c",
    ),
    *("/", ".", "..", "~", "/dev/null", "/proc/self/mem", "/root/none", "https://x.y", "tcp://nowhere:1", *NOWHERE),
)


class TooLongError(BaseException):
    """No kind of error that the code under test expects and mends."""


@dataclass(frozen=True)
class Finding:
    call: str
    what: str


@dataclass(frozen=True)
class Place:
    """Where calls are made: a directory with an artifact `int4`, a picture and a folder of frames."""

    artifact: Path
    directory: Path

    @property
    def sound(self) -> tuple[str, ...]:
        return (str(self.artifact), "random:openvla-tiny", "picture.png", "frames")


@contextmanager
def quiet_and_soon(directory: Path) -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """In the directory, with output caught; TooLongError after a minute."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TooLongError(f"still at work after {LONGEST_S} s")

    here, shown, caught = Path.cwd(), io.StringIO(), io.StringIO()
    before = signal.signal(signal.SIGALRM, late)
    os.chdir(directory)
    signal.alarm(LONGEST_S)
    try:
        with redirect_stdout(shown), redirect_stderr(caught), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield shown, caught
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        os.chdir(here)


def command_lines(place: Place, dice: random.Random) -> Iterator[list[str]]:
    """Of every command in turn: its arguments and some of its options, with values of any kind."""
    group: Any = typer.main.get_command(app)
    names = sorted(group.commands)
    while True:
        for name in names:
            yield [name, *_given(group.commands[name], place, dice)]


def _given(command: Any, place: Place, dice: random.Random) -> Iterator[str]:
    sound = () if command.name in HEAVY else place.sound
    sources = NOWHERE if command.name in HEAVY else WORDS + sound
    for parameter in command.params:
        if not parameter.opts[0].startswith("-"):
            for _ in range(dice.choice((0, 1, 1, 1, 1, 1, 2))):
                yield dice.choice(sound or sources) if dice.random() < 0.6 else dice.choice(sources)
        elif parameter.opts[-1] != "--help" and dice.random() < (0.8 if parameter.required else 0.15):
            yield dice.choice(parameter.opts) if dice.random() < 0.97 else parameter.opts[0][:-1] + "q"
            if not getattr(parameter, "is_flag", False) and dice.random() < 0.97:
                yield dice.choice(sound) if sound and dice.random() < 0.3 else dice.choice(WORDS)
    if command.name == "demo":  # which needs no argument to run for a minute
        yield from ("--out", "frames")


def run_command(arguments: Sequence[str], place: Place) -> Finding | None:
    """None if it ended as it should."""
    call = "edge-vla " + " ".join(map(repr, arguments))[:300]
    with quiet_and_soon(place.directory) as (shown, said):
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code or 0
        except BaseException as error:  # noqa: BLE001  (this is what is looked for)
            return Finding(call, f"{type(error).__name__}: {error}\n{traceback.format_exc()[-600:]}")
        else:
            code = 0
    text = said.getvalue()
    if code not in CODES or "Traceback" in text or "a fault of edge-vla" in text:
        return Finding(call, f"exit code {code}: {text[-300:]}")
    if code not in (0, 1) and not (text + shown.getvalue()).strip():
        return Finding(call, f"exit code {code} without a word")
    return None


def values(place: Place) -> list[Any]:
    """What Python programs pass by mistake, and what they should."""
    bytes_, picture = np.zeros((9, 8, 3), np.uint8), synthetic_image(0, 28)
    return [
        *(
            None,
            True,
            0,
            3,
            -1,
            0.5,
            float("nan"),
            10**30,
            b"x",
            (),
            [],
            {},
            {"a": 1},
            ["x"],
            [1],
            {1},
            object(),
            print,
        ),
        *(
            "",
            "x",
            "\0",
            "random",
            "go",
            "auto",
            "cpu",
            "cuda:0",
            "fp32",
            "a" * 5000,
            "org/name",
            "random:openvla-tiny",
        ),
        *(Path("nowhere"), Path(), place.artifact, str(place.artifact), Path("/dev/null"), "picture.png", "\ud800"),
        *(
            bytes_,
            bytes_[:, :, 0],
            bytes_[None],
            bytes_.transpose(2, 0, 1),
            bytes_[:0],
            bytes_ / 255,
            bytes_.astype(int),
        ),
        *(
            bytes_.astype(object),
            bytes_ > 3,
            np.float64(3),
            np.full((9, 8, 3), np.nan),
            np.array("x"),
            bytes_.tobytes(),
        ),
        *(picture, picture.convert("L"), picture.convert("F"), Image.new("RGB", (0, 3)), [picture, picture], iter([3])),
        *(torch.zeros(3, 9, 8), torch.device("cpu"), torch.device("meta"), torch.bfloat16, torch.float16, ValueError),
    ]


def python_calls(place: Place, dice: random.Random) -> Iterator[tuple[str, Callable[[], object]]]:
    """Of every public function in turn: some of its parameters, sound or not."""
    policy = edge_vla.load(place.artifact, check=False)
    session = policy.session()
    functions: Mapping[str, Callable[..., Any]] = {
        "load": edge_vla.load,
        **{f"policy.{name}": getattr(policy, name) for name in ("act", "act_many", "session", "dims", "warm")},
        **{f"session.{name}": getattr(session, name) for name in ("act", "reset")},
        "policy.use_statistics": edge_vla.load(place.artifact, check=False).use_statistics,
    }
    sound = {"path": place.artifact, "image": synthetic_image(0, 28), "images": [synthetic_image(0, 28)]}
    sound |= {"instruction": "go", "instructions": ["go"], "check": False}
    pool = values(place)
    while True:
        for name, function in functions.items():
            positional, named = list[Any](), dict[str, Any]()
            for parameter in inspect.signature(function).parameters.values():
                if dice.random() < (0.1 if parameter.default is inspect.Parameter.empty else 0.8):
                    continue
                value = sound.get(parameter.name) if dice.random() < 0.6 else dice.choice(pool)
                if parameter.name in sound or value is not None or dice.random() < 0.3:
                    named[parameter.name] = value
            if dice.random() < 0.05:
                named["unknown"] = dice.choice(pool)
            if dice.random() < 0.2 and named:
                positional = [named.pop(next(iter(named)))]
            yield f"{name}({positional!r:.120}, {named!r:.300})", partial(_all, function, positional, named)


def _all(function: Callable[..., object], positional: Sequence[Any], named: Mapping[str, Any]) -> object:
    """The call, and if it gives one thing after the other, all of them."""
    found = function(*positional, **named)
    return list(found) if isinstance(found, Iterator) else found


def run_python(name: str, call: Callable[[], object], place: Place) -> Finding | None:
    with quiet_and_soon(place.directory):
        try:
            call()
        except EdgeVLAError as error:
            return Finding(name, f"more than a line: {error}") if "\n" in str(error).strip() else None
        except BaseException as error:  # noqa: BLE001  (this is what is looked for)
            return Finding(name, f"{type(error).__name__}: {error}\n{traceback.format_exc()[-600:]}")
    return None


def fuzz(place: Place, seed: int, commands: int, calls: int) -> list[Finding]:
    """The findings of so many calls, the same for the same seed."""
    dice = random.Random(seed)
    lines, functions = command_lines(place, dice), python_calls(place, random.Random(seed + 1))
    found = [run_command(next(lines), place) for _ in range(commands)]
    found += [run_python(*next(functions), place) for _ in range(calls)]
    return [one for one in found if one is not None]
