"""`python -m tests.fuzz [--calls 5000] [--seed 0]`: exit code 1 and the findings, if there are any."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import huggingface_hub

from edge_vla.export import Recipe, export
from tests.fuzz.calls import Place, fuzz
from tests.fuzz.test_fuzz import furnish


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=5000, help="half of the command line, half of the Python API")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        artifact = export("random:openvla-tiny", Path(scratch) / "int4", Recipe(bits=4)).directory
        place = furnish(Place(artifact, Path(scratch) / "here"))
        found = fuzz(place, options.seed, options.calls // 2, options.calls - options.calls // 2)
    lines = [f"{one.call}\n    {one.what}" for one in found]
    lines.append(f"{options.calls} calls, {len(found)} findings, {time.monotonic() - began:.0f} s, seed {options.seed}")
    sys.stdout.write("\n".join(lines) + "\n")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
