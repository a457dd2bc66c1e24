"""A LoRA adapter for the second world, made with peft on the shipped base.

Knows which modules are adapted and what peft's files look like. The base is the bf16 checkpoint that ships, so that
merging starts from the same weights.
"""

import json
from pathlib import Path
from typing import Final

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from benchmarks.demo_policy import package
from benchmarks.demo_policy.learner import Learner
from edge_vla.errors import CheckpointError
from edge_vla.model import OpenVLA

WORLD: Final = 2


def adapted_modules(policy: OpenVLA) -> list[str]:
    """Every linear and convolution in the towers, the projector and the decoder; not the head."""
    return [
        name
        for name, module in policy.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and not name.endswith("lm_head")
    ]


def wrap(learner: Learner) -> PeftModel:
    """Insert LoRA into the learner's policy in place; only the adapter's factors are trained from here on."""
    targets = adapted_modules(learner.policy)
    settings = LoraConfig(
        r=package.LORA_RANK, lora_alpha=package.LORA_ALPHA, target_modules=targets, lora_dropout=0.0, bias="none"
    )
    for parameter in learner.parameters():
        parameter.requires_grad_(False)
    wrapped: PeftModel = get_peft_model(learner.policy, settings)
    return wrapped


def write(wrapped: PeftModel, directory: Path) -> None:
    """adapter_config.json without a base path, adapter_model.safetensors, and the world's statistics beside them."""
    wrapped.save_pretrained(str(directory), safe_serialization=True)
    (directory / "README.md").unlink(missing_ok=True)
    path = directory / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    if not settings.get("target_modules"):
        raise CheckpointError(f"{path}: peft wrote no target_modules")
    settings["target_modules"] = sorted(settings["target_modules"])
    settings["base_model_name_or_path"] = None
    path.write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    package.write_statistics(directory, WORLD)
