"""`openpi-client` 0.1.2: WebsocketClientPolicy and ActionChunkBroker."""

import numpy as np
from common import ACTION, INSTRUCTION, KEY, SETTINGS, check, finish, image, raises, record, same
from openpi_client import msgpack_numpy
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

HOST, PORT = SETTINGS["host"], SETTINGS["port"]
OBSERVATIONS = {
    "droid": {
        "observation/exterior_image_1_left": image(),
        "observation/wrist_image_left": image()[::-1],
        "observation/joint_position": np.zeros(7),
        "observation/gripper_position": np.zeros(1),
        "prompt": INSTRUCTION,
    },
    "libero": {
        "observation/image": image(),
        "observation/wrist_image": image()[::-1],
        "observation/state": np.zeros(8, np.float32),
        "prompt": INSTRUCTION,
    },
    "aloha": {
        "state": np.ones(14),
        "images": {name: image().transpose(2, 0, 1) for name in ("cam_high", "cam_left_wrist", "cam_right_wrist")},
        "prompt": INSTRUCTION,
        "episode": np.float32(1),
    },
}

client = WebsocketClientPolicy(HOST, PORT, api_key=SETTINGS["token"])


def infer(name: str) -> None:
    record(f"openpi-{name}.request", msgpack_numpy.packb(OBSERVATIONS[name]))
    found = client.infer(OBSERVATIONS[name])
    assert found["actions"].shape == (1, len(ACTION))
    same(found["actions"])
    assert found["server_timing"]["infer_ms"] > 0


def metadata() -> None:
    found = client.get_server_metadata()
    assert KEY in found["unnorm_keys"], found
    assert found["action_horizon"] == 1


def broker() -> None:
    found = ActionChunkBroker(client, action_horizon=1)
    for _ in range(3):
        same(found.infer(OBSERVATIONS["libero"])["actions"])
    found.reset()


def still_usable(observation: object, *words: str) -> None:
    raises(lambda: client.infer(observation), *words)
    infer("droid")


def reconnect() -> None:
    client._ws.close()
    client._ws, found = client._wait_for_server()
    assert found
    infer("libero")


check("metadata first", metadata)
for robot in OBSERVATIONS:
    check(f"infer, {robot}", lambda robot=robot: infer(robot))
check("ActionChunkBroker", broker)
check("error as text, then usable", lambda: still_usable({"prompt": "x"}, "E_MALFORMED", "none of them a camera"))
check(
    "CHW where HWC is expected",
    lambda: still_usable({"observation/image": image().transpose(2, 0, 1), "prompt": "x"}, "E_IMAGE_SHAPE", "CHW"),
)
check("unknown key", lambda: still_usable({**OBSERVATIONS["libero"], "unnorm_key": "mars"}, "E_UNNORM_KEY", KEY))
check("reconnect", reconnect)
record(
    "openpi.encoded", msgpack_numpy.packb({"actions": ACTION[None], "a": np.float32(0.5), "b": {"c": [1, "x", None]}})
)
client._ws.close()  # websockets 11 waits for it at exit
finish()
