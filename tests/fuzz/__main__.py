"""`python -m tests.fuzz [--calls 5000] [--seed 0]`: exit code 1 and the findings, if there are any."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from huggingface_hub import constants as hub

from edge_vla.export import Recipe, export
from tests.fuzz.calls import Finding, Place, fuzz
from tests.fuzz.test_fuzz import furnish

BATCH: Final = 100  # calls, after which it says how far it is


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=5000, help="half of the command line, half of the Python API")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    hub.HF_HUB_OFFLINE = True
    found, said = list[Finding](), 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        artifact = export("random:openvla-tiny", Path(scratch) / "int4", Recipe(bits=4)).directory
        place = furnish(Place(artifact, Path(scratch) / "here"))
        for batch in range(-(-options.calls // BATCH)):
            count = min(BATCH, options.calls - BATCH * batch)
            found += fuzz(place, 1000 * options.seed + batch, count // 2, count - count // 2)
            lines = [f"{one.call}\n    {one.what}" for one in found[said:]]
            seconds, done = time.monotonic() - began, BATCH * batch + count
            lines.append(f"{done} calls, {len(found)} findings, {seconds:.0f} s, seed {options.seed}")
            sys.stdout.write("\n".join(lines) + "\n")
            sys.stdout.flush()
            said = len(found)
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
