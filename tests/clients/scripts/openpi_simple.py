"""openpi's own `examples/simple_client/main.py` (SETTINGS["openpi_simple"]) as each of its robots, from a shell."""

import subprocess
import sys
import tempfile
from pathlib import Path

import polars
from common import SETTINGS, check, finish

MAIN = Path(SETTINGS["openpi_simple"]) / "main.py"
STEPS = 5
TIMINGS = {"client_infer_ms", "server_infer_ms", "server_prev_total_ms", "policy_infer_ms"}


def drive(robot: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        timings = Path(scratch) / "timings.parquet"
        command = [sys.executable, MAIN, "--host", SETTINGS["host"], "--port", str(SETTINGS["port"])]
        command += ["--api-key", SETTINGS["token"], "--num-steps", str(STEPS), "--env", robot, "--timing-file", timings]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-400:]
        found = polars.read_parquet(timings)
    assert len(found) == STEPS
    assert set(found.columns) >= TIMINGS, found.columns


for name in ("ALOHA", "ALOHA_SIM", "DROID", "LIBERO"):
    check(f"simple_client, {name}", lambda robot=name: drive(robot))
finish()
