"""`from_pretrained`'s arguments: honoured, without effect, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from edge_vla import compat
from edge_vla.compat import AutoModelForVision2Seq, AutoProcessor
from edge_vla.errors import BackendError, EdgeVLAError, UsageError

PROMPT = "In: What action should the robot take to open the drawer?\nOut:"


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        # openvla experiments/robot/openvla_utils.py
        (
            {"attn_implementation": "flash_attention_2", "torch_dtype": torch.bfloat16, "load_in_8bit": False,
             "load_in_4bit": False, "low_cpu_mem_usage": True, "trust_remote_code": True},
            torch.bfloat16,
        ),
        ({"torch_dtype": torch.float32, "device_map": {"": "cpu"}}, torch.float32),
        ({"torch_dtype": "auto", "device_map": "cpu", "use_safetensors": True}, torch.bfloat16),
        ({"dtype": torch.float32, "device": torch.device("cpu"), "quantization_config": None}, torch.float32),
        ({"device": "cpu", "revision": "main", "cache_dir": None, "force_download": False}, torch.bfloat16),
    ],
)  # fmt: skip
def test_arguments_that_are_met(options: dict[str, Any], dtype: torch.dtype, golden_checkpoint: Path) -> None:
    model = AutoModelForVision2Seq.from_pretrained(golden_checkpoint, **{"device": "cpu", **options})
    assert (model.dtype, model.device.type) == (dtype, "cpu")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"load_in_4bit": True}, "load_in_4bit.*edge-vla export PATH --out DIR --bits 4"),
        ({"load_in_8bit": True}, "load_in_8bit.*--bits 8"),
        ({"quantization_config": object()}, "quantization_config.*edge-vla export"),
        ({"torch_dtype": torch.float16}, "torch.float16.*torch.bfloat16 or torch.float32"),
        ({"device_map": {"vision_backbone": 0, "language_model": 1}}, "device_map over 2 modules"),
        ({"device_map": "balanced"}, "device 'balanced'"),
        ({"device": "cuda:3"}, "CUDA_VISIBLE_DEVICES"),
        ({"token": "secret"}, "token=str.*HF_TOKEN"),
        ({"cache_dir": "/somewhere"}, "cache_dir.*HF_HOME"),
        ({"revision": "v2"}, "revision=v2.*has no revisions"),
        ({"norm_stats": {"a": 1}}, "norm_stats.*no such argument"),
        ({"torch_dytpe": torch.bfloat16}, "torch_dytpe.*no such argument"),
    ],
)
def test_arguments_that_are_refused(options: dict[str, Any], said: str, golden_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match=said):
        compat.load(golden_checkpoint, **{"device": "cpu", **options})


def test_an_artifact_of_these_bits_is_what_load_in_4bit_asks_for(tiny_artifacts: Mapping[int, Path]) -> None:
    model, _ = compat.load(tiny_artifacts[4], "cpu", load_in_4bit=True)
    assert model.get_action_dim() == 7
    with pytest.raises(UsageError, match="load_in_8bit"):
        compat.load(tiny_artifacts[4], "cpu", load_in_8bit=True)


def test_a_processor_by_itself_gives_the_same_inputs(
    golden_checkpoint: Path, tiny_artifacts: Mapping[int, Path]
) -> None:
    for path in (golden_checkpoint, tiny_artifacts[4]):
        _, whole = compat.load(path, "cpu")
        alone = AutoProcessor.from_pretrained(path, trust_remote_code=True)
        picture = torch.zeros(50, 40, 3, dtype=torch.uint8).numpy()
        for name, expected in whole(PROMPT, picture).items():
            assert torch.equal(alone(PROMPT, picture)[name], expected)


def test_local_files_only_and_the_slow_tokenizer(golden_checkpoint: Path) -> None:
    """A directory is local; of a Hub id it cannot be promised."""
    assert AutoProcessor.from_pretrained(golden_checkpoint, local_files_only=True)
    with pytest.raises(UsageError, match=r"local_files_only.*HF_HUB_OFFLINE"):
        compat.load("nobody/nothing", "cpu", local_files_only=True)
    with pytest.raises(UsageError, match="use_fast=False"):
        AutoProcessor.from_pretrained(golden_checkpoint, use_fast=False)


def test_a_revision_is_the_hubs(monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_vla.compat.loading import with_revision

    assert with_revision("openvla/openvla-7b", "abc") == "openvla/openvla-7b@abc"
    assert with_revision("openvla/openvla-7b", None) == "openvla/openvla-7b"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((EdgeVLAError, BackendError)):
        compat.load("nobody/nothing", "cpu", revision="abc")
