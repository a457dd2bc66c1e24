"""`vla-eval`: its Connection, and its SyncEpisodeRunner with a benchmark of two steps."""

import anyio
import numpy as np
from common import ACTION, INSTRUCTION, SETTINGS, check, finish, image, raises, record, same
from vla_eval.benchmarks.base import StepBenchmark, StepResult
from vla_eval.connection import Connection
from vla_eval.protocol import numpy_codec
from vla_eval.protocol.messages import Message, MessageType, pack_message
from vla_eval.runners.sync_runner import SyncEpisodeRunner

URL = SETTINGS["ws"] + "/vla-eval"
OBSERVATION = {"images": {"agentview": image()}, "task_description": INSTRUCTION, "state": np.zeros(7)}


class TwoSteps(StepBenchmark):
    def __init__(self) -> None:
        super().__init__()
        self.actions = []

    def get_tasks(self) -> list:
        return [{"name": "two steps", "suite": "test"}]

    def reset(self, task: dict) -> int:
        return 0

    def step(self, action: dict) -> StepResult:
        self.actions.append(action["actions"])
        return StepResult(len(self.actions), 0.0, len(self.actions) == 2, {})

    def make_obs(self, raw_obs: int, task: dict) -> dict:
        return OBSERVATION

    def get_step_result(self, step_result: StepResult) -> dict:
        return {"success": True}


async def runner(gripper: str) -> list:
    benchmark = TwoSteps()
    async with Connection(f"{URL}?gripper={gripper}", max_retries=1) as connection:
        assert connection.server_info["action_spec"], connection.server_info
        result = await SyncEpisodeRunner().run_episode(benchmark, benchmark.get_tasks()[0], connection, max_steps=5)
    assert result["steps"] == 2, result
    assert result["metrics"]["success"]
    return benchmark.actions


def raw() -> None:
    for action in anyio.run(runner, "raw"):
        same(action)


def closing() -> None:
    for action in anyio.run(runner, "close-positive"):
        assert np.array_equal(action[:-1], ACTION[:-1])
        assert action[-1] == -np.sign(2 * ACTION[-1] - 1)


def encoded_as(form: str) -> None:
    numpy_codec.set_image_format(form)
    message = Message(MessageType.OBSERVATION, OBSERVATION, seq=3, timestamp=1.5)
    record(f"vla-eval-{form}.request", pack_message(message))
    if form == "jpeg":  # another picture: only that it is answered
        assert len(anyio.run(runner, "raw")) == 2
    else:
        raw()


def error() -> None:
    async def ask() -> None:
        async with Connection(URL, max_retries=1) as connection:
            try:
                await connection.act({"images": {}, "task_description": "x"})
            finally:
                same((await connection.act(OBSERVATION))["actions"][:-1])

    raises(lambda: anyio.run(ask), "E_MALFORMED")


def short_action() -> None:
    global ACTION
    import common

    common.ACTION = ACTION[:-1]
    error()
    common.ACTION = ACTION


check("SyncEpisodeRunner, raw gripper", raw)
check("SyncEpisodeRunner, closing positive", closing)
for form in ("png", "raw", "jpeg"):
    check(f"images as {form}", lambda form=form: encoded_as(form))
numpy_codec.set_image_format("png")
check("error, then usable", short_action)
for name in ("HELLO", "EPISODE_START", "EPISODE_END"):
    record(f"vla-eval-{name.lower()}.request", pack_message(Message(MessageType[name], {"task": {}}, 1, 1.5)))
record("vla-eval.encoded", pack_message(Message(MessageType.ACTION, {"actions": ACTION}, 4, 2.5)))
finish()
