"""python -m benchmarks.gpu.counted [--chip H200 ..] [--out FILE]: the counted table, in Triton's environment, no GPU.

Compiles every kernel at OpenVLA-7B's shapes for every chip, a process each (some minutes a chip), and counts the
launches of an action. Says what is worse than in the table that is there before it replaces it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from benchmarks import study
from benchmarks.gpu.counted.chips import CHIPS
from benchmarks.gpu.counted.launches import rows, structure
from benchmarks.gpu.counted.result import CountedResult, KernelRow, broken, worsened
from benchmarks.result_files import read_result
from edge_vla import typed_json
from edge_vla.errors import BackendError

log: Final = logging.getLogger("benchmarks.gpu")
TABLE: Final = study.ROOT / "benchmarks" / "results" / "gpu-counted.json"


def compiled(chip: str) -> list[KernelRow]:
    """Every kernel for this chip, in a process of its own. BackendError with the compiler's last words."""
    environment = {key: value for key, value in study.child_environment().items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.gpu.counted.kernels", chip]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BackendError(f"no kernels for {chip}: {done.stderr[-3000:]}")
    log.info("%s: %d kernels", chip, done.stdout.count("\n"))
    return [typed_json.from_json(KernelRow, json.loads(line)) for line in done.stdout.splitlines()]


def complaints(found: Sequence[KernelRow], table: CountedResult) -> list[str]:
    """What is worse than in the table for the chips found, and what no kernel may do."""
    chips = {row.chip for row in found}
    before = [row for row in table.kernels if row.chip in chips]
    said = [line for row in found for line in broken(row, CHIPS[row.chip].shared_bytes)]
    return said + list(worsened(before, found))


def read_table(path: Path = TABLE) -> CountedResult:
    body = read_result(path).body
    assert isinstance(body, CountedResult), f"{path} holds another result"
    return body


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.counted", description=__doc__)
    parser.add_argument("--chip", action="append", choices=CHIPS, help="repeatable (default: all)")
    parser.add_argument("--out", type=Path, default=TABLE, help="JSON file")
    options = parser.parse_args()
    import triton

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = [row for one in pool.map(compiled, options.chip or list(CHIPS)) for row in one]
    if TABLE.exists():
        for line in complaints(found, read_table()):
            log.warning("%s", line)
    launches = list(rows(structure()))
    study.write_result(options.out, CountedResult(f"Triton {triton.__version__}", launches, found))
    log.info("written: %s", options.out)


if __name__ == "__main__":
    study.run(main)
