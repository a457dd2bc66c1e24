"""`edge-vla doctor`: what on this machine will stop or slow a policy, and the next command for each."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.text import Text

from edge_vla.options import AsJson
from edge_vla.terminal import err, out

if TYPE_CHECKING:
    from edge_vla.device.doctor import Check, Report

WIDTH: Final = 80
INDENT: Final = 21  # of what was found, behind verdict and name
MARK: Final = "  → "
COLOURS: Final = {"ok": "green", "note": "cyan", "warning": "yellow", "failure": "red"}


def doctor(
    artifact: Annotated[
        Path | None, typer.Argument(help="An artifact directory, to be checked on this machine.")
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Of the artifact structure and fit alone: no hashes, kernels, golden frames.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="One line for every check.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check this machine, and an artifact on it: what will stop or slow the policy, and the command that helps.

    Exit code 0, or that of the worst failure: 3 environment, 5 memory or disk, 6 artifact. Runs without torch, too.
    """
    from edge_vla.device.doctor import System, examine

    with err.status("checking") as status:
        report = examine(System(), artifact, fast=fast, on_check=lambda name: status.update(f"checking {name}"))
    if as_json:
        print(json.dumps(asdict(report)))
    else:
        for line in shown(report, verbose):
            out.print(line)
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def shown(report: Report, verbose: bool) -> list[Text]:
    """Lines of at most 80 columns: failures, warnings, then the rest, by group or one by one; a summary last."""
    order = ("failure", "warning")
    bad = [check for kind in order for check in report.checks if check.verdict.value == kind]
    fine = [check for check in report.checks if check.verdict.value not in order]
    lines = [line for check in bad for line in _bad(check)]
    lines += [line for check in fine for line in _row(check)] if verbose else _grouped(fine)
    counts = {kind: sum(check.verdict.value == kind for check in report.checks) for kind in COLOURS}
    words = ", ".join(
        f"{count} {kind}{'s' if count != 1 and kind != 'ok' else ''}" for kind, count in counts.items() if count
    )
    more = "" if verbose else "; -v shows each"
    return [*lines, Text(f"{len(report.checks)} checks: {words}{more}")]


def _row(check: Check) -> list[Text]:
    return _lines(check.verdict.value, check.name, " ".join(check.found.split()))


def _bad(check: Check) -> list[Text]:
    """The remedy starts far left, so that a command stays on one line and can be copied."""
    remedy = textwrap.wrap(check.remedy, WIDTH - len(MARK), break_long_words=False, break_on_hyphens=False)
    marked = [(MARK if index == 0 else " " * len(MARK)) + line for index, line in enumerate(remedy)]
    return [*_row(check), *(Text(line, "bold") for line in marked)]


def _grouped(checks: list[Check]) -> list[Text]:
    """A line a group, cut at 80 columns."""
    from edge_vla.device.doctor import GROUPS

    lines = list[Text]()
    for group in GROUPS:
        own = [check for check in checks if check.group == group]
        if own:
            verdict = "ok" if any(check.verdict.value == "ok" for check in own) else "note"
            words = "; ".join(" ".join(check.found.split()) for check in own)
            width = WIDTH - INDENT
            lines += _lines(verdict, group, words if len(words) <= width else f"{words[: width - 1]}…")
    return lines


def _lines(verdict: str, name: str, words: str) -> list[Text]:
    first, *rest = textwrap.wrap(words, WIDTH - INDENT, break_on_hyphens=False) or [""]
    head = Text.assemble((f"{verdict:<8}", COLOURS[verdict]), f"{name:<13}", first)
    return [head, *(Text(" " * INDENT + line) for line in rest)]
