"""Isaac GR00T N1.5's ExternalRobotInferenceClient, from its own `gr00t/eval/service.py` (SETTINGS["gr00t_n15"]).

`gr00t.data.dataset` would import torch and a data set's stack for one class of two fields, so a module of that name
holds just the class here; the client and its serializer are the file's.
"""

import sys
import types

import numpy as np
from common import ACTION, INSTRUCTION, SETTINGS, check, finish, image, raises, record, same
from pydantic import BaseModel


class ModalityConfig(BaseModel):
    delta_indices: list[int]
    modality_keys: list[str]


def stub(name: str, **members: object) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(members)
    module.__path__ = []
    sys.modules[name] = module


for package in ("gr00t", "gr00t.data"):
    stub(package)
stub("gr00t.data.dataset", ModalityConfig=ModalityConfig)
sys.path.insert(0, SETTINGS["gr00t_n15"])
service = __import__("service")

OBSERVATION = {
    "video.image": image()[None],
    "state.joints": np.zeros((1, 7)),
    "annotation.human.action.task_description": [INSTRUCTION],
}
NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
client = service.ExternalRobotInferenceClient(SETTINGS["host"], SETTINGS["zmq_port"])
client.api_token = SETTINGS["token"]


def get_action(observation: dict) -> None:
    found = client.get_action(observation)
    assert all(found[f"action.{name}"].shape[-2:] == (1, 1) for name in NAMES)
    same(np.concatenate([found[f"action.{name}"].reshape(1) for name in NAMES]))


def batched() -> None:
    get_action({**OBSERVATION, "video.image": image()[None, None], "state.joints": np.zeros((1, 1, 7))})


def modalities() -> None:
    found = client.call_endpoint("get_modality_config", requires_input=False)
    assert isinstance(found["action"], ModalityConfig)
    assert found["action"].modality_keys == list(NAMES)


check("ping", lambda: exec("assert client.ping()"))
check("get_action", lambda: get_action(OBSERVATION))
check("get_action, a batch", batched)
check("get_modality_config", modalities)
check("error", lambda: raises(lambda: client.get_action({"state.joints": np.zeros(3)}), "E_MALFORMED", "a video"))
check("kill is refused", lambda: raises(client.kill_server, "kill is refused"))
check("unknown endpoint", lambda: raises(lambda: client.call_endpoint("train"), "E_NOT_FOUND", "get_action"))
check("usable after errors", lambda: get_action(OBSERVATION))
packed = service.MsgSerializer.to_bytes
record("gr00t-n15.request", packed({"endpoint": "get_action", "data": OBSERVATION, "api_token": "secret"}))
record(
    "gr00t-n15.encoded",
    packed({"action.x": ACTION[:1, None], "m": ModalityConfig(delta_indices=[0], modality_keys=["x"])}),
)
finish()
