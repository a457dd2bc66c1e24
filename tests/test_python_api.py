"""The face of the package in Python: what a caller sees, and what a slip is answered with."""

from __future__ import annotations

import pydoc
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import edge_vla
from edge_vla.errors import CheckpointError, EdgeVLAError, FrameError, UsageError

IMAGE = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def policy(tiny_artifacts: Mapping[int, Path]) -> edge_vla.Policy:
    return edge_vla.load(tiny_artifacts[4], torch.device("cpu"), dtype=torch.bfloat16, check=False)


def test_what_the_package_shows() -> None:
    assert dir(edge_vla) == ["Action", "EdgeVLAError", "Policy", "Session", "__version__", "load"]
    help_text = pydoc.render_doc(edge_vla)
    assert all(word in help_text for word in ("policy.act(", "unnorm_keys", "action.named"))
    assert (Path(edge_vla.__file__).parent / "py.typed").is_file()


def test_an_action_is_an_array_with_names(policy: edge_vla.Policy) -> None:
    action = policy.act(IMAGE, "go")
    assert np.array_equal(np.array(action), action.values)
    assert np.asarray(action, dtype=np.float32).dtype == np.float32
    assert list(action.named) == ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
    assert list(action.named.values()) == action.values.tolist()


def test_a_policy_says_what_it_is_and_ends(tiny_artifacts: Mapping[int, Path]) -> None:
    with edge_vla.load(str(tiny_artifacts[8]), check=False) as policy:
        assert policy.unnorm_keys == ("random",)
        assert "int8" in repr(policy)
        assert "random" in repr(policy)
        session = policy.session()
    policy.close()
    assert "closed" in repr(policy)
    for call in (lambda: policy.act(IMAGE, "go"), lambda: session.act(IMAGE, "go"), lambda: policy.network):
        with pytest.raises(UsageError, match="closed"):
            call()


SLIPS: Mapping[str, tuple[Callable[[Any], object], type[EdgeVLAError], str]] = {
    "swapped": (lambda p: p.act("go", IMAGE), UsageError, "instruction must be str, got ndarray of shape"),
    "missing": (lambda p: p.act(IMAGE), UsageError, "missing a required argument: 'instruction'"),
    "unknown": (lambda p: p.act(IMAGE, "go", key="x"), UsageError, "unexpected keyword argument 'key'"),
    "key": (lambda p: p.act(IMAGE, "go", 3), UsageError, "unnorm_key must be str or None, got int 3"),
    "torch": (lambda p: p.act(torch.zeros(3, 9, 9), "go"), FrameError, r"image\.permute\(1, 2, 0\)\.cpu\(\)\.numpy"),
    "int64": (lambda p: p.act(IMAGE.astype(np.int64), "go"), FrameError, r"image\.astype\(np\.uint8\)"),
    "uint16": (lambda p: p.act(IMAGE.astype(np.uint16) * 257, "go"), FrameError, "image // 257"),
    "0 to 255": (lambda p: p.act(IMAGE.astype(np.float32), "go"), FrameError, r"image\.astype\(np\.uint8\)"),
    "0 to 1": (lambda p: p.act(IMAGE / 255, "go"), FrameError, "multiply by 255"),
    "normalised": (lambda p: p.act(IMAGE / 128 - 1, "go"), FrameError, "looks normalised"),
    "path": (lambda p: p.act("camera.png", "go"), FrameError, r"PIL\.Image\.open\(path\)"),
    "batch": (lambda p: p.act(IMAGE[None], "go"), FrameError, r"give image\[0\]"),
    "draft": (lambda p: p.session(bitwise_exact="no"), UsageError, "bitwise_exact must be bool"),
    "load nothing": (lambda _: edge_vla.load(None), UsageError, r"load\(path, …\): path must be str or Path"),  # type: ignore[arg-type]
    "load two": (lambda _: edge_vla.load("x", device="cuda:1"), UsageError, "CUDA_VISIBLE_DEVICES=1"),
    "adapters": (lambda _: edge_vla.load("random:openvla-tiny", adapters=3), UsageError, "adapters must be"),  # type: ignore[arg-type]
    "no list": (lambda p: p.warm(np.array("go")), UsageError, "instructions must be a list of str"),
    "statistics": (lambda p: p.use_statistics(IMAGE), CheckpointError, "must be an object by data set"),
    "NUL": (lambda _: edge_vla.load("a\0b"), UsageError, "no such directory"),
    "long": (lambda _: edge_vla.load("a" * 5000), UsageError, "is no path"),
}


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_is_one_line(name: str, policy: edge_vla.Policy) -> None:
    call, kind, word = SLIPS[name]
    with pytest.raises(kind, match=word) as caught:
        call(policy)
    assert "\n" not in str(caught.value)


def test_one_adapter_needs_no_list(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--adapter .*adaptor: no such directory"):
        edge_vla.load("random:openvla-tiny", adapters=str(tmp_path / "adaptor"))


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "edge_vla", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == edge_vla.__version__
