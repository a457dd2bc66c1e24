"""The watcher sees what was planted: a peak that was freed, a child's memory, pages that two processes share."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edge_vla.bench.memory import Watcher
from edge_vla.bench.result import CudaMemory
from edge_vla.errors import BackendError

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


def run(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdin
    assert child.stdout
    child.stdin.write(line + "\n")
    child.stdin.flush()
    assert child.stdout.readline() == "done\n"


def test_it_sees_a_planted_allocation_that_is_freed_again() -> None:
    with acting("import time\n") as child:
        run(child, "0")
        with Watcher(child.pid) as watcher:
            before = watcher.mark()
            run(child, f"held = b'x' * {64 * MB}; time.sleep(0.1); del held")
            loaded = watcher.mark()
            run(child, "time.sleep(0.05)")
            later = watcher.mark()
            memory = watcher.summary({"decoder": 5}, loaded, later, CudaMemory(allocated_peak_bytes=7))
    assert loaded.peak_bytes - before.bytes == pytest.approx(64 * MB, rel=0.05)
    assert loaded.bytes - before.bytes < 4 * MB
    assert later.peak_bytes - before.bytes < 4 * MB, "the peak of a phase is its own"
    assert memory.peak_bytes == pytest.approx(loaded.peak_bytes, abs=MB), "as the kernel counts it"
    assert memory.samples > 5
    assert memory.pss_peak_bytes is not None
    assert 0 <= memory.watcher.cpu_share < 1
    assert memory.load_peak_bytes == loaded.peak_bytes
    assert memory.loaded_bytes == later.bytes
    assert memory.cuda is not None
    assert memory.cuda.allocated_peak_bytes == 7
    assert memory.weights == {"decoder": 5}


def test_it_counts_children_and_shared_pages_once_in_pss() -> None:
    script = f"""\
        import mmap, os, time
        shared = mmap.mmap(-1, {48 * MB})
        shared.write(b"x" * {48 * MB})
        """
    with acting(script) as child:
        run(child, "0")
        with Watcher(child.pid) as watcher:
            alone = watcher.mark()
            run(child, f"pid = os.fork(); pid or (shared[: {48 * MB} : 4096], time.sleep(30))")
            run(child, "time.sleep(0.1)")
            both = watcher.mark()
            run(child, "os.kill(pid, 9)")
    assert both.bytes - alone.bytes > 48 * MB, "RSS counts a shared page twice"
    assert both.pss_bytes is not None
    assert alone.pss_bytes is not None
    assert both.pss_bytes - alone.pss_bytes < 16 * MB, "PSS counts it once"


def test_the_peak_of_a_process_that_ended_is_kept() -> None:
    with acting("import time\n") as child:
        run(child, "0")
        with Watcher(child.pid) as watcher:
            run(child, f"held = b'x' * {32 * MB}; time.sleep(0.05)")
            child.kill()
            child.wait()
            after = watcher.mark()
    assert after.peak_bytes > 32 * MB
    assert after.bytes == 0


def test_a_process_that_is_gone_is_an_error() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    with pytest.raises(BackendError, match="no process"):
        Watcher(gone.pid)
