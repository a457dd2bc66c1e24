"""Run every unmodified client against a real server: `make test-clients`.

    python -m tests.clients [--only NAME] [--environments DIR] [--openpi-simple DIR] [--gr00t-n15 DIR] [--gr00t-n16 DIR]
        [--record]

GR00T's client and openpi's example are in no package index: without the folders they lie in, they are skipped, by
name. `--record` rewrites the bytes in tests/serve/golden that the default tests replay. Exits 1 if a check failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.clients.environments import CLIENTS, Client, SkippedError, python_of
from tests.clients.server import Servers, serving_demo

SCRIPTS: Final = Path(__file__).parent / "scripts"
GOLDEN: Final = Path(__file__).parents[1] / "serve" / "golden"
CLIENT_S: Final = 120


def main() -> int:
    options = _options()
    failed, skipped = [], []
    with tempfile.TemporaryDirectory() as scratch, serving_demo(Path(scratch)) as servers:
        for client in CLIENTS:
            if options.only and options.only not in client.name:
                continue
            try:
                if not _run(client, servers, options, Path(scratch)):
                    failed.append(client.name)
            except SkippedError as why:
                skipped.append(client.name)
                print(f"{client.name}: skipped: {why}", flush=True)
    print(f"failed: {', '.join(failed) or 'none'}; skipped: {', '.join(skipped) or 'none'}")
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.clients")
    parser.add_argument("--only", help="part of a client's name")
    parser.add_argument("--environments", type=Path, help="keep the environments here for the next run")
    parser.add_argument("--openpi-simple", type=Path)
    parser.add_argument("--gr00t-n15", type=Path)
    parser.add_argument("--gr00t-n16", type=Path)
    parser.add_argument("--record", action="store_true")
    return parser.parse_args()


def _run(client: Client, servers: Servers, options: argparse.Namespace, scratch: Path) -> bool:
    settings = servers.settings(client.name) | {"record": str(GOLDEN) if options.record else None}
    if client.needs_source:
        name, what = client.needs_source
        if getattr(options, name) is None:
            raise SkippedError(f"--{name.replace('_', '-')} DIR with {what}")
        settings[name] = str(getattr(options, name).resolve())
    python = python_of(client, options.environments or scratch)
    file = scratch / f"{client.name}.json"
    file.write_text(json.dumps(settings), encoding="utf-8")
    print(f"{client.name}:", flush=True)
    try:
        done = subprocess.run([python, SCRIPTS / client.script, file], timeout=CLIENT_S, check=False)
    except subprocess.TimeoutExpired:
        print(f"FAILED to end within {CLIENT_S} s", flush=True)
        return False
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
