"""What `make demo` costs from nothing: counted from pip's own words, and said before anything is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks import study
from benchmarks.first_run import RESULT, FirstRunResult, _sizes
from benchmarks.result_files import read_result

LOG = """\
2026-11-26T11:30:00,123   Downloading numpy-2.4.0-cp311-cp311-manylinux_2_28_x86_64.whl.metadata (62 kB)
2026-11-26T11:30:00,456   Downloading numpy-2.4.0-cp311-cp311-manylinux_2_28_x86_64.whl (16.9 MB)
2026-11-26T11:30:01,456 Downloading six-1.17.0-py2.py3-none-any.whl (11 kB)
2026-11-26T11:30:02,456 Processing {wheel}
2026-11-26T11:30:02,456 Processing {wheel}
"""


def test_downloads_are_counted_once_each(tmp_path: Path) -> None:
    wheel = tmp_path / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl"
    wheel.write_bytes(b"x" * 1234)
    assert list(_sizes(LOG.format(wheel=wheel))) == [16_900_000, 11_000, 1234]


def test_what_it_costs_is_said_before() -> None:
    """By any Python, from nothing but the standard library; the README has the same words."""
    command = [sys.executable, "-I", "-S", str(study.ROOT / "benchmarks" / "first_run.py"), "--say"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = read_result(RESULT)
    assert isinstance(found.body, FirstRunResult)
    assert found.body.in_words() in said
    assert found.body.in_words() in (study.ROOT / "README.md").read_text(encoding="utf-8")
    assert found.body.verdict.startswith(("Passed: ", "Failed: ")), "a demo that ends decided"
    assert found.provenance.commit is not None
    assert "+" not in found.provenance.commit
