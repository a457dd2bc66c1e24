"""The page in a real browser: it opens without a word in the console, and asks for nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from edge_vla.bench import reports
from tests.bench.sample_result import sample_result

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")


def opened(page: str, tmp_path: Path) -> tuple[str, list[str]]:
    """The page's text as the browser holds it, and what its console says."""
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    done = subprocess.run(
        [
            str(BROWSER),
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"),
            *("--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND"),
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            (tmp_path / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode or "</html>" not in done.stdout:
        pytest.skip(f"this Chromium does not run here: {done.stderr[-300:]}")
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def test_it_opens_in_silence(tmp_path: Path) -> None:
    page, console = opened(reports.html(sample_result()), tmp_path)
    assert console == []
    assert page.count("<svg") == reports.html(sample_result()).count("<svg")


def test_a_request_would_be_heard(tmp_path: Path) -> None:
    """The check above can fail: the page's own policy refuses a request, a script and a frame aloud."""
    evil = '<img src="http://localhost/x.png"><script>1</script><iframe src="http://localhost/"></iframe></body>'
    _, console = opened(reports.html(sample_result()).replace("</body>", evil), tmp_path)
    assert len([line for line in console if "Content Security Policy" in line]) == 3
