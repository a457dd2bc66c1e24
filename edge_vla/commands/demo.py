"""`edge-vla demo`: the whole path on the embedded demo policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_vla.commands.bench import require_bench, show
from edge_vla.options import Verbose
from edge_vla.terminal import err, export_progress, interruptible, out


def demo(
    out_dir: Annotated[Path, typer.Option("--out", help="Directory to make; must not exist.")] = Path("demo-out"),
    episodes: Annotated[int, typer.Option(help="Closed-loop episodes of each policy.", min=1)] = 100,
    frames: Annotated[int, typer.Option(help="Frames compared with the reference.", min=1)] = 96,
    verbose: Verbose = False,
) -> None:
    """The whole path on the embedded policy: merge, int4, ONNX, verify, bench, episodes, a picture, a report."""
    require_bench()
    from edge_vla.demo.tour import MARGIN, tour

    kept = f"{out_dir} is unfinished; the same command makes it anew"
    with interruptible(lambda: kept), export_progress() as progress:
        made = tour(out_dir, episodes, frames, progress, err.print)
    show(made.result, out_dir / "bench", verbose)
    out.print(f"its closed loop accepts a loss of {MARGIN:.0%}; a bench's 3% takes 344 episodes (docs/demo-policy.md)")
    out.print(f"episode: {made.episode} ({out_dir / 'episode.png'})")
    out.print(f"next: {made.next_action}")
