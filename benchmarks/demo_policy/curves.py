"""Training logs as a picture: `python -m benchmarks.demo_policy.curves LOG [LOG …] --out curves.png`.

Knows JSON lines with a step and numbers; one panel for each group of names. Knows nothing of training.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw

from benchmarks import study

PANELS: Final[Mapping[str, Sequence[str]]] = {
    "loss": ("action", "dx", "pointer"),
    "vision loss": ("goal", "local", "scene", "held"),
    "free-running": ("dx sign", "named target", "grip decided", "close dx", "close dz"),
    "closed loop": ("pick success", "put success", "pick wrong object"),
}
COLOURS: Final = ("#1f5fa8", "#c0392b", "#2e8b57", "#8e44ad", "#d68910")
WIDTH, HEIGHT, MARGIN = 460, 260, 44


def read(logs: Sequence[Path]) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value) points; the steps of each log continue those of the log before."""
    series: dict[str, list[tuple[int, float]]] = {}
    offset = 0
    for log in logs:
        last, stage = 0, None
        for line in log.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row.get("stage") != stage:  # the committed log holds several stages
                offset, last, stage = offset + last, 0, row.get("stage")
            last = max(last, row["step"])
            for name, value in row.items():
                if name not in ("step", "stage"):
                    series.setdefault(name, []).append((row["step"] + offset, float(value)))
        offset += last
    return series


def _panel(title: str, series: Mapping[str, Sequence[tuple[int, float]]], end: int, top: float) -> Image.Image:
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    left, right, low, high = MARGIN, WIDTH - 12, HEIGHT - 28, 26
    draw.text((left, 6), title, fill="black")
    for i in range(5):
        y = low - (low - high) * i / 4
        draw.line((left, y, right, y), fill="#dddddd")
        draw.text((6, y - 6), f"{top * i / 4:.2f}", fill="#555555")
    draw.text((right - 60, low + 8), f"step {end}", fill="#555555")
    for points, colour in zip(series.values(), cycle(COLOURS), strict=False):
        line = [
            (left + (right - left) * step / end, low - (low - high) * min(max(value / top, 0.0), 1.0))
            for step, value in points
        ]
        if len(line) > 1:
            draw.line(line, fill=colour, width=2)
        for x, y in line if len(line) < 40 else []:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
    x = left + 90.0
    for name, colour in zip(series, cycle(COLOURS), strict=False):
        draw.text((x, 6), name, fill=colour)
        x += draw.textlength(name) + 10
    return image


def draw(logs: Sequence[Path]) -> Image.Image:
    series = read(logs)
    end = max((step for points in series.values() for step, _ in points), default=1)
    shown = {t: {n: series[n] for n in names if n in series} for t, names in PANELS.items()}
    shown = {title: chosen for title, chosen in shown.items() if chosen}
    sheet = Image.new("RGB", (2 * WIDTH, HEIGHT * ((len(shown) + 1) // 2)), "white")
    for i, (title, chosen) in enumerate(shown.items()):
        values = sorted(value for points in chosen.values() for _, value in points)
        top = 1.0 if title in ("free-running", "closed loop") else values[int(0.97 * (len(values) - 1))]
        sheet.paste(_panel(title, chosen, end, top), (WIDTH * (i % 2), HEIGHT * (i // 2)))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_policy.curves", description=__doc__)
    parser.add_argument("logs", nargs="+", type=Path, help="JSON lines, as `train` writes them")
    parser.add_argument("--out", required=True, type=Path, help="PNG file")
    given = parser.parse_args()
    draw(given.logs).save(given.out, optimize=True)


if __name__ == "__main__":
    study.run(main)
