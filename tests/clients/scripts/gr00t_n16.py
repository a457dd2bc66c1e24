"""Isaac GR00T N1.6's PolicyClient, from its own `gr00t/policy/` and `gr00t/data/types.py` (SETTINGS["gr00t_n16"]).

Packages above them would import torch; empty ones stand there, the files that speak the protocol are upstream's.
"""

import sys
import types
from dataclasses import asdict
from pathlib import Path

import numpy as np
from common import ACTION, INSTRUCTION, SETTINGS, check, finish, image, raises, record, same

ROOT = Path(SETTINGS["gr00t_n16"])
for package in ("gr00t", "gr00t.data", "gr00t.policy"):
    module = types.ModuleType(package)
    module.__path__ = [str(ROOT / package.replace(".", "/"))]
    sys.modules[package] = module


def to_json_serializable(value: object) -> object:
    """Of `gr00t.data.utils`, whose imports need torch: a ModalityConfig without action configs is plain already."""
    return asdict(value)


utils = types.ModuleType("gr00t.data.utils")
utils.to_json_serializable = to_json_serializable
sys.modules["gr00t.data.utils"] = utils
from gr00t.data.types import ModalityConfig  # noqa: E402
from gr00t.policy.server_client import MsgSerializer, PolicyClient  # noqa: E402

NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
LANGUAGE = "annotation.human.task_description"


def observation(rows: int = 1) -> dict:
    return {
        "video": {"image": np.stack([image()[None]] * rows), "wrist_image": np.stack([image()[::-1][None]] * rows)},
        "state": {"joints": np.zeros((rows, 1, 7), np.float32)},
        "language": {LANGUAGE: [[INSTRUCTION]] * rows},
    }


client = PolicyClient(SETTINGS["host"], SETTINGS["zmq_port"], api_token=SETTINGS["token"])


def get_action(rows: int) -> None:
    action, info = client.get_action(observation(rows), {"observation_id": 3})
    assert all(action[name].shape == (rows, 1, 1) for name in NAMES)
    for row in range(rows):
        same(np.concatenate([action[name][row, 0] for name in NAMES]), "<f4")
        assert info["edge_vla"][row]["observation_id"] == 3


def modalities() -> None:
    found = client.get_modality_config()
    assert isinstance(found["action"], ModalityConfig)
    assert found["action"].modality_keys == list(NAMES)


def wrong_token() -> None:
    stranger = PolicyClient(SETTINGS["host"], SETTINGS["zmq_port"], api_token="guess")
    raises(stranger.get_modality_config, "E_UNAUTHORISED")


check("ping", lambda: exec("assert client.ping()"))
check("get_action", lambda: get_action(1))
check("get_action, a batch of three", lambda: get_action(3))
check("reset", lambda: client.reset())
check("get_modality_config", modalities)
check("error", lambda: raises(lambda: client.get_action({"video": {}, "language": {}}), "E_MALFORMED"))
check("kill is refused", lambda: raises(client.kill_server, "kill is refused"))
check("wrong token", wrong_token)
check("usable after errors", lambda: get_action(1))
request = {"endpoint": "get_action", "data": {"observation": observation(), "options": None}, "api_token": "secret"}
record("gr00t-n16.request", MsgSerializer.to_bytes(request))
record("gr00t-ping.request", MsgSerializer.to_bytes({"endpoint": "ping", "api_token": "secret"}))
record("gr00t-n16.encoded", MsgSerializer.to_bytes([{"x": ACTION[:1, None, None]}, {"m": ModalityConfig([0], ["x"])}]))
finish()
