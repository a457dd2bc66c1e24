"""The README's figures, written from `benchmarks/results/*.json` so that no number in it is typed by hand.

    python -m edge_vla.benchmarks.figures README.md benchmarks/results

rewrites what stands between the two marker lines. A test fails when the README is stale.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from edge_vla.errors import EdgeVLAError, UsageError
from edge_vla.files import write_whole

BEGIN: Final = "<!-- figures: python -m edge_vla.benchmarks.figures README.md benchmarks/results -->"
END: Final = "<!-- end of figures -->"

Result = Mapping[str, Any]


def figures(results: Path) -> str:
    """Markdown for every result that has a table, by file name."""
    parts = []
    for path in sorted(results.glob("*.json")):
        result: Result = json.loads(path.read_text(encoding="utf-8"))
        table = TABLES.get(result.get("kind", ""))
        if table is not None:
            parts += [*table(result), "", _measured_on(path, result), ""]
    return "\n".join(parts)


def fill(text: str, content: str) -> str:
    """`text` with everything between its markers replaced."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"the text has no {BEGIN!r} … {END!r} to fill")
    return f"{before}{BEGIN}\n\n{content}\n{END}{after}"


def _commands(result: Result) -> Iterator[str]:
    yield "| command | time | peak memory |"
    yield "|---|---|---|"
    for command in result["commands"]:
        shown = shlex.join(command["arguments"])
        yield f"| `edge-vla {shown}` | {_seconds(command['seconds'])} | {command['peak_bytes'] / 2**30:.2f} GiB |"
    for name, size in result["disk_bytes"].items():
        yield f"| size of `{name}` | | {size / 1e9:.2f} GB on disk |"


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


def _measured_on(path: Path, result: Result) -> str:
    environment = result["environment"]
    busy = environment["load_average"]
    return (
        f"[{path.name}](benchmarks/results/{path.name}): {environment['device']}, {environment['cores']} cores, "
        f"load average {busy} at the end, commit {environment['commit'][:12]}"
    )


TABLES: Final[Mapping[str, Callable[[Result], Iterator[str]]]] = {"commands": _commands, "demo formats": _formats}


def main() -> None:
    page, results = Path(sys.argv[1]), Path(sys.argv[2])
    write_whole(page, fill(page.read_text(encoding="utf-8"), figures(results)))


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"error: {error}")
