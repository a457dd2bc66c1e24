"""`make bench-gpu`: kernels, tokens, memory and speed of the GPU engine against its peers, in one short run.

    python -m benchmarks.gpu [--out benchmarks/results] [--only PART ..] [--dry-run]

The 7B policy's weights are random, made on the device from seeds: time and memory do not depend on their values.
Every part is saved as it ends. A dry run goes through all of it at toy size on a CPU with the reference kernels, and
its result says so: it shows that the run holds together and measures nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from benchmarks.gpu import targets
from benchmarks.gpu.plan import BUDGET_S
from benchmarks.gpu.result import read
from benchmarks.gpu.run import log
from benchmarks.gpu.supervise import configure_log, supervise
from edge_vla.errors import EdgeVLAError, UsageError

RESULTS: Final = Path("benchmarks/results")
DRY_OUT: Final = Path("bench-out")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder (default: benchmarks/results, or bench-out for a dry run)")
    parser.add_argument("--dry-run", action="store_true", help="everything at toy size on a CPU")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds; parts that would not fit are skipped")
    parser.add_argument("--only", action="append", default=[], help="parts whose name begins like this; repeatable")
    parser.add_argument("--commit", help="of this source tree, where it has no .git that would tell")
    parser.add_argument("--verbose", action="store_true", help="with the traceback of whatever fails")
    options = parser.parse_args()
    configure_log(options.verbose)
    if options.dry_run and options.out is not None and options.out.resolve() == RESULTS.resolve():
        raise UsageError(f"--dry-run measures nothing, and {RESULTS} is for measurements: choose another --out")
    out = options.out or (DRY_OUT if options.dry_run else RESULTS)
    path = supervise(out, options.dry_run, options.budget, options.only, options.commit, options.verbose)
    for line in targets.lines(read(path).targets):
        log.info("%s", line)
    log.info("written: %s", path)


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"{type(error).__name__}: {error}")
