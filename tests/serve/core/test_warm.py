"""No robot's first action waits for a graph that could be there: the GPU engine, with its reference kernels."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from edge_vla.commands.serve import read_instructions
from edge_vla.errors import ResourceError, UsageError
from edge_vla.serve import loading
from edge_vla.serve.host import Host, HostOptions
from edge_vla.serve.loading import Choices
from edge_vla.serve.messages import Observation, Reply
from tests.runtime.gpu.engines import Counted, engine, policy
from tests.serve.core.conftest import picture

INSTRUCTIONS = ("lift it", "put the red block on the plate", "open the upper drawer of the cabinet and close it again")


def hosted(artifact: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[Host, Counted], Awaitable[None]]) -> None:
    """`use` a host whose policy is run by the engine, with what it recorded."""
    counted = Counted()
    monkeypatch.setattr(loading, "load", lambda directory, *_, **__: policy(directory, record=counted))
    monkeypatch.setattr(loading, "replay", lambda *_: [])  # its tokens are those of another kernel

    async def run() -> None:
        host = Host(HostOptions(valid_ms=60_000, instructions=INSTRUCTIONS))
        await host.start(artifact, Choices())
        try:
            await use(host, counted)
        finally:
            await host.drain(5)

    asyncio.run(run())


async def ask(host: Host, words: str, robot: str = "arm") -> None:
    assert isinstance(await host.act(Observation(robot, picture(0), words, time.monotonic_ns())), Reply)


def test_warmed_instructions_record_nothing_and_a_longer_one_drops_nothing(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(host: Host, counted: Counted) -> None:
        made = engine(host.served.policy)
        warmed, graphs = counted.recorded, len(made.graphs)
        assert graphs == warmed >= len(INSTRUCTIONS)
        for _ in range(2):  # the second with a draft
            for words in INSTRUCTIONS:
                await ask(host, words)
        assert counted.recorded == warmed
        buffers = made._buffers
        await ask(host, " ".join(["put"] * 14), "talker")
        assert counted.recorded > warmed, "a length that nobody warmed"
        assert made._buffers is buffers, "there was room for it"
        assert len(made.graphs) > graphs
        now = counted.recorded
        for words in INSTRUCTIONS:
            await ask(host, words)
        assert counted.recorded == now

    hosted(artifact, monkeypatch, use)


def test_a_file_has_an_instruction_a_line(tmp_path: Path) -> None:
    path = tmp_path / "instructions.txt"
    with pytest.raises(ResourceError, match="--warm-instructions"):
        read_instructions(path)
    path.write_text(" \n\n", encoding="utf-8")
    with pytest.raises(UsageError, match="is empty"):
        read_instructions(path)
    path.write_text("lift it\n\n  open the drawer \nlift it\n", encoding="utf-8")
    assert read_instructions(path) == ("lift it", "open the drawer")
    assert read_instructions(None) == ()
