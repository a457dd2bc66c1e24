"""The pictures in docs/images: what a terminal and a browser show of one bench, in both widths, light and dark.

    python -m docs.first_screens demo-out/bench

Terminals are the real lines, drawn by rich; the page is the real report, in headless Chromium.
"""

from __future__ import annotations

import argparse
import io
import subprocess
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, MONOKAI
from typer.testing import CliRunner

from edge_vla.bench import reports
from edge_vla.cli import app
from edge_vla.commands.bench import TONES

IMAGES: Final = Path(__file__).parent / "images"
THEMES: Final = {"light": DEFAULT_TERMINAL_THEME, "dark": MONOKAI}
WIDTHS: Final = (80, 120)
WINDOWS: Final = {"1280": (1280, 900), "390": (390, 1500)}
SCHEMES: Final = {"dark": 0, "light": 1}  # of Chromium's preferredColorScheme


def terminals(bench: Path) -> None:
    """`bench-80-light.svg` and so on: the end of a bench, and the help."""
    result, help_text = reports.read(bench), CliRunner().invoke(app, ["--help"]).output
    for width in WIDTHS:
        for name, theme in THEMES.items():
            console = recording(width)
            for line in reports.lines(result, width):
                console.print(line.text, style=TONES[line.tone], highlight=False, markup=False)
            console.print("report: demo-out/bench/report.html (-v prints it here)", highlight=False)
            console.save_svg(str(IMAGES / f"bench-{width}-{name}.svg"), title="edge-vla bench", theme=theme)
        console = recording(width)
        console.print(help_text, highlight=False, markup=False)
        console.save_svg(str(IMAGES / f"help-{width}.svg"), title="edge-vla --help", theme=MONOKAI)


def recording(width: int) -> Console:
    return Console(record=True, width=width, force_terminal=True, file=io.StringIO())


def pages(bench: Path) -> None:
    """`report-1280-light.png` and so on: the first screen of the report."""
    for width, (x, y) in WINDOWS.items():
        for scheme, number in SCHEMES.items():
            shot = IMAGES / f"report-{width}-{scheme}.png"
            flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={x},{y}")
            wanted = (f"--blink-settings=preferredColorScheme={number}", f"--screenshot={shot}")
            page = (bench / "report.html").resolve().as_uri()
            subprocess.run(["chromium", *flags, *wanted, page], check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench", type=Path, help="a bench's directory")
    options = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    terminals(options.bench)
    pages(options.bench)


if __name__ == "__main__":
    main()
