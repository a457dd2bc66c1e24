"""The live page: what it shows is what happened, it asks nobody else, and a browser runs it without a complaint."""

from __future__ import annotations

import re
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest

from edge_vla.serve.activity import WINDOW_S, Activity
from edge_vla.serve.client import ClientError, Robot
from edge_vla.serve.messages import Code
from edge_vla.serve.page import PAGE
from edge_vla.serve.tokens import Token
from tests.serve.core.conftest import WORDS, Live, patient, picture, running

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SOON = 20_000.0


def test_its_data_is_what_happened(live: Live) -> None:
    with Robot(live.ws, "left") as left, Robot(live.ws, "right") as right:
        for _ in range(5):
            last = left.act(picture(0), WORDS, deadline_ms=SOON)
        with pytest.raises(ClientError):
            right.act(picture(0), "", deadline_ms=SOON)
        found = {robot["robot"]: robot for robot in live.json("/live")["robots"]}
    assert set(found) == {"left", "right"}
    assert found["left"]["action"] == last.values.tolist()
    assert found["left"]["instruction"] == WORDS
    assert len(found["left"]["latencies_ms"]) == 5
    assert 0 < found["left"]["p50_ms"] <= found["left"]["p99_ms"]
    assert found["right"]["refused"] == {"E_INSTRUCTION": 1}
    assert found["right"]["p50_ms"] is None


def test_a_minute_ago_is_forgotten_and_robots_are_bounded() -> None:
    now = [0.0]
    activity = Activity(lambda: now[0], 3)
    for i in range(5):
        activity.refused(f"arm-{i}", Code.DEADLINE)
    assert [view.robot for view in activity.view()] == ["arm-2", "arm-3", "arm-4"]
    now[0] = WINDOW_S + 1
    activity.refused("arm-4", Code.OVERLOAD)
    (view,) = activity.view()
    assert view.refused == {"E_OVERLOAD": 1}


def test_it_asks_no_other_server(live: Live) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^'\"\s]+", text)) == {"http://www.w3.org/2000/svg"}, "a name, never fetched"
    assert "innerHTML" not in text
    with urllib.request.urlopen(f"http://127.0.0.1:{live.port}/") as page:
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        assert page.read().decode() == text


def test_its_data_needs_the_token_and_it_can_be_left_out(artifact: Path) -> None:
    with running(artifact, patient(tokens=(Token("0123456789abcdef"),))) as live:
        assert live.get("/")[0] == 200
        assert live.get("/live")[0] == 401
        assert live.get("/live", Authorization="Bearer 0123456789abcdef")[0] == 200
    with running(artifact, patient(page=False)) as live:
        assert live.get("/")[0] == live.get("/live")[0] == 404


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_shows_two_robots(live: Live, tmp_path: Path) -> None:
    with Robot(live.ws, "left") as left, Robot(live.ws, "<b>right</b>") as right:
        for robot in (left, right):
            robot.act(picture(0), WORDS, deadline_ms=SOON)
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path}",
        ]
        command = [str(BROWSER), *options, "--virtual-time-budget=3000", "--dump-dom", f"http://127.0.0.1:{live.port}/"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "<h2>left</h2>" in done.stdout
    assert "<h2>&lt;b&gt;right&lt;/b&gt;</h2>" in done.stdout
    assert f'<p class="words">{WORDS}</p>' in done.stdout
    assert "CONSOLE" not in done.stderr
