"""The watcher sees what was planted: a peak that was freed, a child's memory, pages that two processes share."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edge_vla.bench.memory import Poller, poller_cost, summary
from edge_vla.bench.memory_watcher import POINTS, Series, family
from edge_vla.bench.reports.schema import schema
from edge_vla.errors import BackendError, UsageError

MB = 1 << 20


@contextmanager
def acting(script: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs one line of `script` for each line it is sent, and answers each with `done`."""
    loop = "import sys\nfor line in sys.stdin:\n    exec(line)\n    sys.stdout.write('done\\n'); sys.stdout.flush()\n"
    command = [sys.executable, "-c", textwrap.dedent(script) + loop]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def tell(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdin
    assert child.stdout
    child.stdin.write(line + "\n")
    child.stdin.flush()
    assert child.stdout.readline() == "done\n"


def test_it_sees_a_planted_allocation_that_is_freed_again() -> None:
    with acting("import time\n") as child:
        tell(child, "0")
        with Poller(child.pid) as poller:
            before = poller.mark("started")
            tell(child, f"held = b'x' * {64 * MB}; time.sleep(0.1); del held")
            loaded = poller.mark("loaded")
            tell(child, "time.sleep(0.05)")
            steady = poller.mark("steady")
            seen = poller.stop()
            assert poller.stop() is seen
    assert loaded["peak_bytes"] - before["bytes"] == pytest.approx(64 * MB, rel=0.05)
    assert loaded["bytes"] - before["bytes"] < 4 * MB
    assert steady["peak_bytes"] - before["bytes"] < 4 * MB, "the peak of a phase is its own"
    assert seen["peak_bytes"] == loaded["peak_bytes"]
    assert seen["kernel_peak_bytes"] >= seen["peak_bytes"] - MB
    assert max(value for _, value in seen["series"]) == seen["peak_bytes"]
    assert seen["samples"] > 5
    assert seen["pss_peak_bytes"] > 0
    assert not seen["ended"]
    memory = summary(seen, {"decoder": 5}, {"max_allocated_bytes": 7})
    assert memory["load_peak_bytes"] == loaded["peak_bytes"]
    assert memory["steady_bytes"] == steady["bytes"]
    assert memory["cuda"]["max_allocated_bytes"] == 7
    assert memory["weights"] == {"decoder": 5}
    definitions = schema()["$defs"]
    assert set(memory) == set(definitions["memory"]["properties"])
    json.dumps(memory)


def test_it_counts_children_and_shared_pages_once_in_pss() -> None:
    script = f"""\
        import mmap, os, time
        shared = mmap.mmap(-1, {48 * MB})
        shared.write(b"x" * {48 * MB})
        """
    with acting(script) as child:
        tell(child, "0")
        with Poller(child.pid) as poller:
            alone = poller.mark("alone")
            tell(child, f"pid = os.fork(); pid or (shared[: {48 * MB} : 4096], time.sleep(30))")
            tell(child, "time.sleep(0.1)")
            both = poller.mark("both")
            seen = poller.stop()
            assert len(family(child.pid)) == 2
            tell(child, "os.kill(pid, 9)")
    assert seen["processes"] == 2
    assert both["bytes"] - alone["bytes"] > 48 * MB, "RSS counts a shared page twice"
    assert both["pss_bytes"] - alone["pss_bytes"] < 16 * MB, "PSS counts it once"


def test_a_process_that_ends_is_told_and_its_peak_kept() -> None:
    with acting("import time\n") as child:
        tell(child, "0")
        with Poller(child.pid) as poller:
            tell(child, f"held = b'x' * {32 * MB}; time.sleep(0.05)")
            child.kill()
            child.wait()
            poller.mark("after")
            seen = poller.stop()
    assert seen["ended"]
    assert seen["peak_bytes"] > 32 * MB


def test_no_process_and_a_dead_watcher_are_errors() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    with pytest.raises(UsageError, match="no process"):
        Poller(gone.pid)
    with acting("") as child, Poller(child.pid) as poller:
        poller._process.kill()
        with pytest.raises(BackendError, match="watcher stopped"):
            poller.mark("loaded")


def test_a_long_series_keeps_its_peaks_in_few_points() -> None:
    series = Series()
    for at in range(20_000):
        series.add(at / 100, 10_000 if at == 7_777 else at % 7)
    assert POINTS // 2 <= len(series.points) < POINTS
    assert [value for _, value in series.points if value > 6] == [10_000]
    assert series.points[0] == (0.0, 6)
    near = next(at for at, value in series.points if value == 10_000)
    assert near <= 77.77 < near + series.each / 100


def test_watching_costs_are_measured() -> None:
    """That it runs and says what it must; how much it is, a benchmark says, not a test."""
    got = poller_cost(rounds=1, queries=2, ballast_mb=1)
    assert set(got["slowdown"]) == {"count", "allocate"}
    assert got["slowdown"]["count"]["blocks"] == 2
    assert 0 <= got["watcher_cpu_share"] < 1


def test_the_watcher_imports_nothing_heavy() -> None:
    script = "import sys, edge_vla.bench.memory_watcher; print({'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "set()"
