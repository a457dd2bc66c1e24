"""A wall clock that jumps an hour back and forth moves no deadline, no age and no watchdog, of server or client."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from edge_vla.runtime import Policy
from tests.serve.core.conftest import WORDS, picture

JUMPING = """
import itertools, time
hours = itertools.cycle([0, 3600, -3600, 7200])
wall, wall_ns = time.time, time.time_ns
time.time = lambda: wall() + next(hours)
time.time_ns = lambda: wall_ns() + next(hours) * 10**9
"""
SERVER = JUMPING + "import sys; from edge_vla.cli import main; main(sys.argv[1:])"
CLIENT = (
    JUMPING
    + """
import json, sys
import numpy as np
from edge_vla.serve.client import Robot
holds, found, images = [], [], np.load(sys.argv[2])
with Robot(sys.argv[1], "arm", watchdog_ms=60_000, on_hold=holds.append) as policy:
    for image in [*images] * 5:
        action = policy.act(image, sys.argv[3], deadline_ms=30_000)
        found.append([list(action.tokens), action.age_ms, action.round_trip_ms, action.queue_ms, action.fresh])
print(json.dumps([found, holds, time.time() - time.time()]))
"""
)
LONG_MS = 30_000.0


def test_a_clock_that_jumps(artifact: Path, policy: Policy, tmp_path: Path) -> None:
    images = [picture(seed) for seed in range(3)]
    np.save(tmp_path / "images.npy", np.stack(images))
    command = [sys.executable, "-c", SERVER, "serve", str(artifact), "--port", "0", "--valid-for-ms", f"{LONG_MS:.0f}"]
    server = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert server.stdout is not None
        assert server.stderr is not None
        address = server.stdout.readline().split()[1].removesuffix("/v1/robot")
        while not server.stderr.readline().startswith("ready"):
            assert server.poll() is None
        asked = [sys.executable, "-c", CLIENT, address, str(tmp_path / "images.npy"), WORDS]
        said = subprocess.run(asked, check=True, capture_output=True, text=True, timeout=120).stdout
    finally:
        server.kill()
        server.communicate(timeout=10)
    found, holds, jump = json.loads(said)
    assert abs(jump) >= 3000, "it did jump"
    assert not holds
    expected = [list(policy.act(image, WORDS).tokens) for image in images] * 5
    assert [tokens for tokens, *_ in found] == expected
    for _, age_ms, round_trip_ms, queue_ms, fresh in found:
        assert fresh
        assert 0 <= queue_ms <= round_trip_ms <= LONG_MS
        assert 0 < age_ms <= LONG_MS
