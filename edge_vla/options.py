"""Options that several commands share, and the old names of options that were renamed.

Knows types and help texts. Imports nothing that loads torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from edge_vla.errors import UsageError
from edge_vla.suggestions import choose

if TYPE_CHECKING:
    from edge_vla.openvla.evaluation import Preprocess

Value = TypeVar("Value", bound=str)

ARITHMETICS: Final = ("fp32", "upstream")

Adapters = Annotated[
    list[Path] | None,
    typer.Option("--adapter", help="A peft adapter directory to merge; repeat to merge several in order."),
]
MergeArithmetic = Annotated[
    str,
    typer.Option(help="fp32: add in float32, round once. upstream: bit for bit as OpenVLA's merge script."),
]
PromptChoice = Annotated[
    str | None, typer.Option("--prompt", help="The prompt that a checkpoint was trained with: openvla or v01.")
]
StatisticsFile = Annotated[
    Path | None,
    typer.Option("--statistics", help="A dataset_statistics.json, in place of a checkpoint's or an adapter's own."),
]
UnnormKey = Annotated[str | None, typer.Option(help="Data set whose statistics turn tokens into robot units.")]
Vision = Annotated[str, typer.Option(help="Vision backend: auto, or a name, which runs or raises (docs/tensorrt.md).")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Kernel = Annotated[str, typer.Option(help="Kernel: auto, or a name, which runs or raises (docs/cpu.md, docs/gpu.md).")]
Preprocessing = Annotated[
    str,
    typer.Option(
        "--preprocess",
        help="What an evaluation script does to images first: none, libero, libero-upright or simpler "
        "(docs/evaluate.md).",
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also the whole report, as Markdown.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

# (command, old option) -> new option; and the old values of options that kept their name. They go in version 0.3.
RENAMED: Final[Mapping[tuple[str, str], str]] = {
    ("bench", "--table"): "--env",
    ("bench", "--waterfall"): "--stage-profile",
}
RENAMED_VALUES: Final[Mapping[tuple[str, str, str], str]] = {
    ("bench", "--floor", "rounding shaken"): "rounding noise",
    ("bench", "--profile", "few"): "brief",
}


def modernise(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments with today's names in place of old ones, and a notice for each name that was replaced."""
    command = next((word for word in arguments if not word.startswith("-")), "")
    current, notices = list[str](), list[str]()
    for word in arguments:
        option, equals, value = word.partition("=")
        renamed = RENAMED.get((command, option), option)
        if renamed != option:
            notices.append(f"{option} is now {renamed}; the old name goes in the next version")
        before = renamed if equals else (current[-1] if current else "")
        text = value if equals else renamed
        new = RENAMED_VALUES.get((command, before, text), text)
        if new != text:
            notices.append(f"{before} {text!r} is now {new!r}; the old name goes in the next version")
        current.append(f"{renamed}={new}" if equals else new)
    return current, list(dict.fromkeys(notices))


def choice(option: str, value: Value, allowed: Sequence[str]) -> Value:
    """The value, or UsageError that lists what is allowed."""
    if value not in allowed:
        raise UsageError(f"{option} {value}: {choose(value, allowed)}")
    return value


def script(name: str) -> Preprocess:
    """`--preprocess` as the library has it, or UsageError that lists what is allowed."""
    from edge_vla.openvla.evaluation import chosen

    return chosen(name)
