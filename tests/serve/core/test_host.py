"""What the host promises without a wire: keys, one outcome each under load, deadlines on the real engine, its start."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import re
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgpack
import numpy as np
import pytest

import edge_vla
from edge_vla.artifact import Artifact
from edge_vla.cli import main
from edge_vla.commands.serve import read_token, read_tokens, require_extra
from edge_vla.errors import BackendError, ResourceError, UsageError
from edge_vla.serve import native
from edge_vla.serve.checks import ActionRange, explain, unfit
from edge_vla.serve.counted import Counted
from edge_vla.serve.host import Host, HostOptions
from edge_vla.serve.limits import Limits
from edge_vla.serve.loading import Choices, default_key
from edge_vla.serve.messages import Code, Metadata, Observation, RefusedError, Reply
from edge_vla.serve.supervisor import Supervisor
from edge_vla.serve.tokens import Token
from tests.serve.core.conftest import WORDS, picture

ROOT = Path(__file__).resolve().parents[3]
T = TypeVar("T")


def hosted(artifact: Path, use: Callable[[Host], Awaitable[T]], options: HostOptions | None = None) -> T:
    """`use` a host of the demo policy."""

    async def run() -> T:
        host = Host(options or HostOptions(valid_ms=30_000))
        await host.start(artifact, Choices())
        try:
            return await use(host)
        finally:
            await host.drain(5)

    return asyncio.run(run())


def observation(robot: str, seed: int = 0, **change: object) -> Observation:
    values: dict[str, object] = {"image": picture(seed), "instruction": WORDS, "received_ns": time.monotonic_ns()}
    return Observation(robot, **(values | change))  # type: ignore[arg-type]


def code(outcome: object) -> str:
    return outcome.code.value if isinstance(outcome, RefusedError) else type(outcome).__name__


def two_data_sets(artifact: Path, directory: Path) -> Path:
    """The artifact, as if it had been trained on two data sets. Its hashes are those of other files, and hold."""
    shutil.copytree(artifact, directory)
    manifest = json.loads((directory / "manifest.json").read_text())
    (known,) = manifest["statistics"]
    manifest["statistics"]["other"] = manifest["statistics"][known]
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


def test_several_data_sets_need_a_choice(artifact: Path, tmp_path: Path) -> None:
    several = Artifact(two_data_sets(artifact, tmp_path / "two"))
    with pytest.raises(UsageError, match=r"2 data sets.*--unnorm-key.*other"):
        default_key(several, None)
    assert default_key(several, "other") == "other"
    with pytest.raises(UsageError, match="unknown unnorm_key"):
        default_key(several, "third")
    (known,) = Artifact(artifact).manifest.config.statistics
    assert default_key(Artifact(artifact), None) == known


def test_a_key_chosen_at_the_start_is_the_default_and_others_may_be_asked_for(artifact: Path, tmp_path: Path) -> None:
    directory = two_data_sets(artifact, tmp_path / "two")

    async def use() -> tuple[Metadata, list[str]]:
        host = Host()
        await host.start(directory, Choices(unnorm_key="other"))
        asked = (None, "edge_vla_demo_world1")
        replies = [await host.act(observation("arm", unnorm_key=key)) for key in asked]
        await host.drain(5)
        return host.metadata, [reply.unnorm_key for reply in replies]

    metadata, used = asyncio.run(use())
    assert metadata.default_unnorm_key == "other"
    assert used == ["other", "edge_vla_demo_world1"]


def test_a_flood_gets_one_outcome_each_and_a_drain_answers_the_rest(artifact: Path) -> None:
    async def use(host: Host) -> list[object]:
        service = Counted(host, "flood")
        asked = [
            asyncio.ensure_future(service.act(observation(f"arm-{i % 6}", i % 3, observation_id=i, deadline_ms=400)))
            for i in range(60)
        ]
        await asyncio.sleep(0.2)
        await host.drain(5)
        found = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 10)
        with pytest.raises(RefusedError) as late:
            await service.act(observation("arm-0"))
        assert late.value.code is Code.SHUTTING_DOWN
        text = host.metrics.text().decode()
        counted = re.findall(r'edgevla_requests_total\{code="(\w+)",proto="flood"\} (\S+)', text)
        assert sum(float(number) for _, number in counted) == 61
        return list(found)

    outcomes = [code(each) for each in hosted(artifact, use)]
    assert set(outcomes) <= {"Reply", "E_SUPERSEDED", "E_DEADLINE", "E_OVERLOAD", "E_SHUTTING_DOWN"}
    assert "Reply" in outcomes
    assert outcomes.count("E_SUPERSEDED") >= 40


def test_replies_keep_their_deadlines(artifact: Path) -> None:
    """Eight robots that ask without a pause: whoever is answered, is answered in time."""

    async def use(host: Host) -> list[tuple[str, float]]:
        async def drive(robot: str) -> list[tuple[str, float]]:
            found = []
            for step in range(12):
                asked = observation(robot, step % 3, deadline_ms=300)
                try:
                    outcome: object = await host.act(asked)
                except RefusedError as error:
                    outcome = error
                    await asyncio.sleep(error.retry_after_s or 0.02)
                found.append((code(outcome), (time.monotonic_ns() - asked.received_ns) / 1e6))
            return found

        return [row for rows in await asyncio.gather(*(drive(f"arm-{i}") for i in range(8))) for row in rows]

    rows = hosted(artifact, use)
    assert len(rows) == 96
    answered = [elapsed for kind, elapsed in rows if kind == "Reply"]
    assert answered
    assert sum(elapsed > 330 for elapsed in answered) <= len(answered) // 20, "the loop itself may be late, seldom"


def test_sessions_are_bounded_and_leave_with_their_robot(artifact: Path) -> None:
    async def use(host: Host) -> None:
        for i in range(6):
            assert isinstance(await host.act(observation(f"arm-{i}")), Reply)
        assert len(host._sessions) == 4
        assert "arm-5" in host._sessions
        host.leave("arm-5")
        assert "arm-5" not in host._sessions

    hosted(artifact, use, HostOptions(Limits(robots=4)))


def test_a_robot_that_leaves_is_told_and_its_task_lives(artifact: Path) -> None:
    async def use(host: Host) -> str:
        first, second = (asyncio.ensure_future(host.act(observation(name))) for name in ("busy", "leaver"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        host.leave("leaver")
        assert isinstance(await first, Reply)
        with pytest.raises(RefusedError) as refused:
            await second
        return refused.value.code.value

    assert hosted(artifact, use) == "E_SUPERSEDED"


def test_a_reset_forgets_and_changes_nothing(artifact: Path) -> None:
    async def use(host: Host) -> None:
        first = await host.act(observation("arm"))
        host.reset("arm")
        assert host._sessions["arm"]._previous is None
        again = await host.act(observation("arm"))
        assert (again.tokens, again.margins) == (first.tokens, first.margins)

    hosted(artifact, use)


def test_actions_that_no_motor_should_get(artifact: Path) -> None:
    policy = edge_vla.load(artifact, check=False)
    action = policy.act(picture(0), WORDS)
    statistics = policy.config.statistics[action.unnorm_key]
    allowed = ActionRange.of(statistics)
    assert unfit(action, allowed) is None
    for wrong in (np.nan, np.inf, float(statistics.q99[0]) + 0.1):
        values = action.values.copy()
        values[0] = wrong
        assert unfit(dataclasses.replace(action, values=values), allowed) is not None


def test_no_text_of_an_exception_is_told() -> None:
    for error in (RuntimeError("/secret"), OSError("/secret"), BackendError("/secret"), KeyboardInterrupt("/secret")):
        assert "secret" not in explain(error).detail


def test_the_page_lists_the_fields_of_the_wire() -> None:
    """docs/serve.md, byte by byte, and what is sent."""
    page = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    about = Metadata("a" * 12, "m", ["k"], "k", 7, 224, "resize-naive", 1, "0")
    values = np.arange(7, dtype=np.float64)
    reply = Reply(values, (1,) * 7, (0.5,) * 7, "k", "arm", 3, "r", 1.0, 2.0, 3.0, 4.0, "a" * 12, 5)
    for message in (native.greeting(about, "arm"), native.action(reply)):
        sent = msgpack.unpackb(message)
        block = page[page.index('{"type": "' + sent["type"]) :]
        block = block[: block.index("}")]
        assert re.findall(r'"(\w+)":', block) == list(sent)
    assert msgpack.unpackb(native.action(reply))["action"] == values.tolist()
    assert msgpack.packb({"type": "reset", "id": 1}).hex() == "82a474797065a57265736574a2696401"
    for each in Code:
        assert f"`{each.value}`" in page


def test_a_supervisor_that_is_not_there_stops_nothing(tmp_path: Path) -> None:
    Supervisor({}).notify("READY=1")
    Supervisor({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).notify("READY=1")
    assert Supervisor({"WATCHDOG_USEC": "3000000"}).watchdog_s == 3
    assert Supervisor({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}).watchdog_s is None


def test_tokens_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, first, second = tmp_path / "token", "0123456789abcdef", "fedcba9876543210"
    path.write_text(f"{first}\n")
    assert read_tokens(path) == (Token(first),)
    assert read_token(path) == first
    path.write_text(f"# arm\n{first} 20\n\n  {second} 0.5 2\n")
    assert read_tokens(path) == (Token(first, 20), Token(second, 0.5, 2))
    monkeypatch.setenv("EDGE_VLA_TOKEN", "from the environment")
    assert read_tokens(None) == (Token("from the environment"),)
    assert read_token(None) == "from the environment"
    for text in (
        "",
        "# none",
        f"{first} often",
        f"{first} 0",
        f"{first} nan",
        f"{first} 1 2 3",
        "short",
        f"{first}\n{first}",
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match="--token-file") as refused:
            read_tokens(path)
        assert first not in str(refused.value)
    path.write_text("two words")
    with pytest.raises(UsageError, match="one token"):
        read_token(path)
    path.write_bytes(b"\xff" * 32)
    for unreadable in (path, tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ResourceError, match="cannot be read"):  # the environment's is no way out
            read_tokens(unreadable)


@pytest.fixture
def loggers() -> Iterator[None]:
    """The command takes the loggers over; a test gives them back."""
    found = [logging.getLogger(name) for name in ("edge_vla", "uvicorn")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in found]
    yield
    for logger, (handlers, propagate, level) in zip(found, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.mark.usefixtures("loggers")
@pytest.mark.parametrize(
    ("arguments", "exit_code", "says"),
    [
        (["nowhere"], 2, "not an artifact"),
        (["nowhere", "--host", "0.0.0.0"], 2, "--token-file"),
        (["nowhere", "--slo", "fast"], 2, "p99=150ms"),
        (["nowhere", "--compat", "all"], 2, "openvla-exact"),
        (["nowhere", "--token-file", "nowhere"], 5, "cannot be read"),
    ],
)
def test_a_user_s_mistake_is_one_line(
    arguments: list[str], exit_code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["serve", "--port", "0", *arguments])
    assert end.value.code == exit_code
    shown = capsys.readouterr().err
    assert says in shown
    assert "Traceback" not in shown


def test_a_missing_extra_is_named() -> None:
    with pytest.raises(BackendError, match=r"no_such_package: pip install 'edge-vla\[serve\]'"):
        require_extra(["json", "no_such_package"], "serve")
