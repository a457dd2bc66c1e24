"""The live page: what it shows is what happened, it asks nobody else, and a browser runs it without a complaint."""

from __future__ import annotations

import asyncio
import io
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edge_vla.serve.activity import WINDOW_S, Activity
from edge_vla.serve.client import ClientError, Robot
from edge_vla.serve.messages import Code, Observation, Reply
from edge_vla.serve.page import PAGE
from edge_vla.serve.pictures import KEPT, SHOWN, Pictures, encode
from edge_vla.serve.record import RecordOptions
from edge_vla.serve.tokens import Token
from tests.serve.core.conftest import WORDS, Live, patient, picture, running, wait_until

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SOON = 20_000.0
RED, BLUE = (200, 30, 30), (30, 30, 200)
NEAR = 12  # of 255: what a JPEG may change of an even colour
TOKEN = "0123456789abcdef"


def even(colour: tuple[int, int, int], height: int = 224, width: int = 224) -> NDArray[np.uint8]:
    return np.full((height, width, 3), colour, np.uint8)


def seen(live: Live, robot: str) -> tuple[int, str, bytes]:
    """The picture's status, type and file, as a page gets it."""
    name = urllib.parse.quote(robot, safe="")
    with urllib.request.urlopen(f"http://127.0.0.1:{live.port}/live/picture?robot={name}", timeout=10) as found:
        assert found.headers["Cache-Control"] == "no-store"
        return found.status, found.headers["Content-Type"], found.read()


def opened(file: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(file)) as found:
        assert found.format == "JPEG"
        return np.asarray(found)


def close(pixels: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Which pixels have that colour, near enough."""
    found: NDArray[np.bool_] = np.all(abs(pixels.astype(int) - colour) <= NEAR, axis=-1)
    return found


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
    with running(artifact, patient(tokens=(Token(TOKEN),))) as live:
        assert live.get("/")[0] == 200
        assert live.get("/live")[0] == 401
        assert live.get("/live", Authorization=f"Bearer {TOKEN}")[0] == 200
        assert live.get("/live/picture?robot=arm")[0] == 401
        assert live.get("/live/picture?robot=arm", Authorization=f"Bearer {TOKEN}")[0] == 204
    with running(artifact, patient(page=False)) as live:
        assert live.get("/")[0] == live.get("/live")[0] == live.get("/live/picture?robot=arm")[0] == 404


def test_the_picture_is_each_robots_last_until_it_leaves(live: Live) -> None:
    name = "arm/1 & 2"
    with Robot(live.ws, urllib.parse.quote(name, safe="")) as left, Robot(live.ws, "other") as right:
        left.act(even(BLUE), WORDS, deadline_ms=SOON)
        right.act(even(BLUE, 600, 800), WORDS, deadline_ms=SOON)
        left.act(even(RED, 480, 640), WORDS, deadline_ms=SOON)
        robots = {robot["robot"]: robot["picture"] for robot in live.json("/live")["robots"]}
        named = next(each for each in robots if each.startswith("arm"))
        status, kind, file = seen(live, named)
        assert (status, kind) == (200, "image/jpeg")
        assert opened(file).shape == (168, 224, 3), "640 x 480, its longest side 224"
        assert close(opened(file), RED).all()
        assert close(opened(seen(live, "other")[2]), BLUE).all()
        assert seen(live, named)[2] == file, "encoded once"
        assert robots[named] > robots["other"]
    wait_until(lambda: seen(live, named)[0] == 204)
    assert {robot["picture"] for robot in live.json("/live")["robots"] if robot["robot"] == named} == {None}


def test_nothing_is_encoded_until_somebody_looks_and_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []

    def noted(image: NDArray[np.uint8]) -> bytes:
        encoded.append(image.nbytes)
        return encode(image)

    monkeypatch.setattr("edge_vla.serve.pictures.encode", noted)
    large = even(RED, 2026, 4096)
    pictures = Pictures(3)
    reply = Reply(np.zeros(7), (1,) * 7, (1.0,) * 7, "k", "arm", 1, "r", 1, 1, 1, 1, "a", 1)
    for i in range(5):
        pictures.answered(Observation(f"arm-{i}", large, WORDS, time.monotonic_ns()), reply)
    assert [pictures.number(f"arm-{i}") for i in range(5)] == [None, None, 3, 4, 5]
    assert not encoded

    async def look() -> list[bytes | None]:
        return [await pictures.jpeg("arm-4"), await pictures.jpeg("arm-4"), await pictures.jpeg("arm-0")]

    first, again, gone = asyncio.run(look())
    assert first is not None
    assert first is again
    assert gone is None
    assert len(encoded) == 1
    assert max(opened(first).shape) == SHOWN
    assert close(opened(first), RED).all()
    pictures.left("arm-4")
    assert pictures.number("arm-4") is None
    few = Pictures(256)
    for i in range(40):
        few.answered(Observation(f"arm-{i}", large, WORDS, time.monotonic_ns()), reply)
        few.answered(Observation("again", large, WORDS, time.monotonic_ns()), reply)
    held = [i for i in range(40) if few.number(f"arm-{i}") is not None]
    assert held == list(range(40 - KEPT // large.nbytes + 1, 40)), "as many as have room, the latest"
    few.answered(Observation("small", even(BLUE), WORDS, time.monotonic_ns()), reply)
    assert few.number("small") is not None


def test_what_is_redacted_is_not_shown_either(artifact: Path, tmp_path: Path) -> None:
    options = patient(record=RecordOptions(tmp_path / "day", redact=True))
    with running(artifact, options) as live, Robot(live.ws, "arm") as robot:
        robot.act(even(RED), WORDS, deadline_ms=SOON)
        (found,) = live.json("/live")["robots"]
        assert found["instruction"].startswith("redacted ")
        assert WORDS not in live.get("/live")[1]
        assert found["picture"] is None
        assert seen(live, "arm")[0] == 204


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_shows_two_robots(artifact: Path, tmp_path: Path) -> None:
    with running(artifact, patient()) as live, Robot(live.ws, "left") as left, Robot(live.ws, "<b>right</b>") as right:
        left.act(even(RED), WORDS, deadline_ms=SOON)
        right.act(even(BLUE), WORDS, deadline_ms=SOON)
        done = browse(live, tmp_path / "dom", "--dump-dom")
        shot = browse(live, tmp_path / "shot", "--window-size=1000,700", f"--screenshot={tmp_path / 'page.png'}")
    assert "<h2>left</h2>" in done.stdout
    assert "<h2>&lt;b&gt;right&lt;/b&gt;</h2>" in done.stdout
    assert f'<p class="words">{WORDS}</p>' in done.stdout
    assert '<img alt="what left saw last" src="blob:' in done.stdout
    assert '<img alt="what &lt;b&gt;right&lt;/b&gt; saw last" src="blob:' in done.stdout
    assert "CONSOLE" not in done.stderr + shot.stderr
    with Image.open(tmp_path / "page.png") as found:
        pixels = np.asarray(found.convert("RGB"))
    blue, red = (np.flatnonzero(close(pixels, colour).any(axis=0)) for colour in (BLUE, RED))
    assert min(blue.size, red.size) > 100, "as wide as a thumb"
    assert blue.max() < red.min(), "by name: '<b>right</b>' stands left of 'left'"


def browse(live: Live, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The page in a headless browser, three seconds of its time."""
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=3000", *options, f"http://127.0.0.1:{live.port}/"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
