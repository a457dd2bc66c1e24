"""The README's figures and `benchmarks/REPORT.md`, written from the committed results: no number is typed by hand.

    python -m benchmarks.figures README.md benchmarks/results

rewrites what stands between the README's two marker lines, and `REPORT.md` beside the results. A test fails when
either is stale.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.cpu import tables as cpu_tables
from benchmarks.formats import tables as format_tables
from edge_vla.bench.reports import markdown
from edge_vla.bench.reports.markdown import escaped, markdown_table, unpublishable, verdict
from edge_vla.bench.reports.more_tables import against_peers
from edge_vla.bench.reports.systems import sides
from edge_vla.bench.reports.tables import summary, table
from edge_vla.errors import EdgeVLAError, UsageError
from edge_vla.files import write_whole

BEGIN: Final = "<!-- figures: python -m benchmarks.figures README.md benchmarks/results -->"
END: Final = "<!-- end of figures -->"
REPORT: Final = "REPORT.md"
SHORT: Final = frozenset({"side", "same action", "clear leads flipped", "rate", "peak memory", "on disk", "success"})

Result = Mapping[str, Any]


def figures(results: Path) -> str:
    """Markdown for every result that has a table, by file name, as the README shows it."""
    parts = []
    for path, result in _read(results):
        short = TABLES.get(result.get("kind", ""))
        if short is not None:
            parts += [*short(result), "", _measured_on(path, result, "benchmarks/results"), ""]
    return "\n".join(parts)


def report(results: Path) -> str:
    """All results at length, one chapter each; those without a table are named."""
    parts, others = [REPORT_HEAD], []
    for path, result in _read(results):
        kind = result.get("kind", "")
        if kind == "bench":
            parts += [_lowered(markdown(result)), _measured_on(path, result, "results"), ""]
        elif kind in LONG:
            parts += [f"## {path.stem}", "", *LONG[kind](result), "", _measured_on(path, result, "results"), ""]
        else:
            others.append(f"[{path.name}](results/{path.name})")
    if others:
        parts += ["## Without a table here", "", ", ".join(others)]
    return "\n".join(parts).rstrip() + "\n"


def fill(text: str, content: str) -> str:
    """`text` with everything between its markers replaced."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"the text has no {BEGIN!r} … {END!r} to fill")
    return f"{before}{BEGIN}\n\n{content}\n{END}{after}"


def _read(results: Path) -> Iterator[tuple[Path, Result]]:
    for path in sorted(results.glob("*.json")):
        yield path, json.loads(path.read_text(encoding="utf-8"))


def _bench(result: Result) -> Iterator[str]:
    """One row a side; of the floors the first. Where nothing was timed, candidates beside peers."""
    yield f"**{escaped(result['model']['name'])}.** {verdict(result)} {unpublishable(result)}".strip()
    yield ""
    beside = against_peers(result)
    if beside is not None and all(row["latency"] is None for row in result["candidates"]):
        yield from markdown_table(beside)
        return
    whole = summary(result)
    if whole is None:
        return
    kept = [i for i, name in enumerate(whole.columns) if name in SHORT]
    floors = [i for i, side in enumerate(sides(result)) if side.role == "floor"]
    rows = [[row[i] for i in kept] for number, row in enumerate(whole.rows) if number not in floors[1:]]
    short = table(whole.title, [whole.columns[i] for i in kept], rows)
    yield from markdown_table(short) if short else ()


def _commands(result: Result) -> Iterator[str]:
    yield "| command | time | peak memory |"
    yield "|---|---|---|"
    for command in result["commands"]:
        shown = shlex.join(command["arguments"])
        yield f"| `edge-vla {shown}` | {_seconds(command['seconds'])} | {command['peak_bytes'] / 2**30:.2f} GiB |"
        late = [one for one in command.get("foretold", ()) if one["at_s"] >= command["seconds"] / 10]
        if late:
            worst = max(abs(one["over_actual"] - 1) for one in late)
            yield f"| the time it foretold after its first tenth | within {worst:.0%} | |"
        if (size := _on_device(command["last_line"])) is not None:
            yield f"| its weights on the device | | {size / 1e9:.2f} GB |"
    for name, size in result["disk_bytes"].items():
        yield f"| size of `{name}` | | {size / 1e9:.2f} GB on disk |"


def _on_device(line: str) -> int | None:
    """Of the artifact that `inspect --json` described."""
    try:
        return int(json.loads(line)["facts"]["bytes on the device"])
    except (ValueError, TypeError, KeyError):
        return None


def _formats(result: Result) -> Iterator[str]:
    for kind, rate in result.get("expert", {}).items():
        low, high = rate["interval"]
        yield f"The scripted expert, {kind}: {rate['success']} of {rate['episodes']} [{low:.1%}, {high:.1%}]."
    yield ""
    yield "| demo policy | same token as bf16 | same action | flips of clear leads | picked | put | decoder weights |"
    yield "|---|---|---|---|---|---|---|"
    for arm, rows in result["arms"].items():
        floor = next(row["noise_floor"] for row in rows.values() if "noise_floor" in row)
        yield _row(f"{arm}: bf16 with its rounding shaken (the noise floor)", *_agreement(floor), "", "", "")
        for name, row in rows.items():
            agreement = _agreement(row["agreement"]) if "agreement" in row else ("", "", "")
            yield _row(f"{arm}: {name}", *agreement, *_success(row["closed_loop"]), _decoder(row))


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _agreement(agreement: Result) -> Sequence[str]:
    shares = (_interval(agreement[key]) for key in ("teacher_forced", "exact_action"))
    return (*shares, f"{agreement['high_margin_flips']} of {agreement['high_margin_tokens']}")


def _success(closed_loop: Result) -> Iterator[str]:
    for kind in ("pick", "put"):
        row = closed_loop[kind]
        low, high = row["interval"]
        yield f"{row['success']} of {row['episodes']} [{low:.0%}, {high:.0%}]"


def _decoder(row: Result) -> str:
    return f"{row['measured']['candidate']['weight_bytes']['decoder'] / 1e6:.2f} MB" if "measured" in row else ""


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.1%} [{value['low']:.1%}, {value['high']:.1%}]"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def _lowered(text: str) -> str:
    """A report as a chapter: each heading one level down."""
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in text.splitlines())


def _measured_on(path: Path, result: Result, folder: str) -> str:
    environment = result["environment"]
    busy, commit = environment.get("load_average"), environment["commit"] or "unknown"
    return (
        f"[{path.name}]({folder}/{path.name}): {escaped(environment['device'])}, {environment['cores']} cores, "
        + ("" if busy is None else f"load average {busy} at the end, ")
        + f"commit {escaped(commit[:12])}"
    )


TABLES: Final[Mapping[str, Callable[[Result], Iterator[str]]]] = {
    "bench": _bench,
    "commands": _commands,
    "demo formats": _formats,
    "engine": cpu_tables.claims,
    "steady": cpu_tables.claims,
}
LONG: Final[Mapping[str, Callable[[Result], Iterator[str]]]] = {
    **TABLES,
    "engine": cpu_tables.engine,
    "drafts": cpu_tables.drafts,
    "mixed bits": format_tables.rounding,
    "rounding methods": format_tables.rounding,
    "steady": cpu_tables.steady,
}

REPORT_HEAD: Final = (
    "# Report\n\nWritten by `python -m benchmarks.figures README.md benchmarks/results` from what stands in\n"
    "`results/`. Each chapter names the model that it is about and speaks for no other.\n"
)


def main() -> None:
    page, results = Path(sys.argv[1]), Path(sys.argv[2])
    write_whole(page, fill(page.read_text(encoding="utf-8"), figures(results)))
    write_whole(results.parent / REPORT, report(results))


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"error: {error}")
