"""Trained weights -> a Hugging Face OpenVLA checkpoint directory, and back into the training modules.

Knows the layout of OpenVLA's files. The modules that OpenVLA stores but never runs (each tower's last block, the final
norms, SigLIP's pooling head) are written too, small and seeded, because a checkpoint has them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.demo_policy import tokenizer
from benchmarks.demo_policy.learner import demo_spec
from benchmarks.demo_policy.statistics import statistics
from edge_vla.checkpoint import key_table
from edge_vla.demo import statistics_key
from edge_vla.errors import CheckpointError
from edge_vla.model import OpenVLA
from edge_vla.openvla.config import CONSTANTS
from edge_vla.spec import PolicySpec

LORA_RANK: Final = 16
LORA_ALPHA: Final = 32
LORA_SCALE: Final = LORA_ALPHA / LORA_RANK
SHARD: Final = "model-00001-of-00001.safetensors"


def never_run(spec: PolicySpec) -> dict[str, Tensor]:
    """The tensors of the format that no forward pass reads."""
    generator = torch.Generator().manual_seed(7)
    dead = {name: key for name, key in key_table(spec).items() if not key.live}
    return {name: torch.randn(key.shape, generator=generator) * 0.02 for name, key in dead.items()}


def config(spec: PolicySpec) -> dict[str, object]:
    decoder = spec.decoder
    return {
        "architectures": ["OpenVLAForActionPrediction"],
        "model_type": "openvla",
        "arch_specifier": "no-align+fused-gelu-mlp",
        "vision_backbone_id": "dinosiglip-vit-so-224px",
        "timm_model_ids": [tower.name for tower in spec.towers],
        "timm_override_act_layers": [None for _ in spec.towers],
        "timm_model_kwargs": [
            {
                "embed_dim": tower.width,
                "depth": tower.depth,
                "num_heads": tower.heads,
                "mlp_ratio": tower.mlp_width / tower.width,
            }
            for tower in spec.towers
        ],
        "image_sizes": [tower.image_size for tower in spec.towers],
        "image_resize_strategy": "resize-naive",
        "use_fused_vision_backbone": True,
        "llm_backbone_id": "llama2-7b-pure",
        "hf_llm_id": "edge-vla-demo",
        "llm_max_length": 256,
        "n_action_bins": spec.action.bins,
        "pad_to_multiple_of": tokenizer.PADDING,
        "pad_token_id": spec.action.end,
        "output_projector_states": False,
        "text_config": {
            "model_type": "llama",
            "hidden_size": decoder.width,
            "intermediate_size": decoder.mlp_width,
            "num_hidden_layers": decoder.layers,
            "num_attention_heads": decoder.heads,
            "num_key_value_heads": decoder.kv_heads,
            "pad_token_id": spec.action.end,
            "torch_dtype": "bfloat16",
            "vocab_size": decoder.vocab_rows,
        },
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "norm_stats": {statistics_key(1): statistics()},
    }


def preprocessor(spec: PolicySpec) -> dict[str, object]:
    size = spec.image_size
    towers = range(len(spec.towers))
    return {
        "image_processor_type": "PrismaticImageProcessor",
        "processor_class": "PrismaticProcessor",
        "image_resize_strategy": "resize-naive",
        "use_fused_vision_backbone": True,
        "input_sizes": [[3, size, size] for _ in towers],
        "interpolations": ["bicubic" for _ in towers],
        "means": [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]],
        "stds": [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]],
        "tvf_crop_params": [{"output_size": [size, size]} for _ in towers],
        "tvf_do_letterbox": False,
        "tvf_letterbox_fill": None,
        "tvf_normalize_params": [
            {"inplace": False, "mean": list(mean), "std": list(deviation)}
            for mean, deviation in (CONSTANTS[tower.layer_scale] for tower in spec.towers)
        ],
        "tvf_resize_params": [
            {"antialias": True, "interpolation": 3, "max_size": None, "size": [size, size]} for _ in towers
        ],
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def write_statistics(directory: Path, world_number: int) -> None:
    _write_json(directory / "dataset_statistics.json", {statistics_key(world_number): statistics()})


def write(policy: OpenVLA, directory: Path) -> None:
    """The whole checkpoint, weights in bfloat16."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {**policy.state_dict(), **never_run(policy.spec)}
    weights = {key: weights[key].to(torch.bfloat16).contiguous() for key in sorted(weights)}
    save_file(weights, directory / SHARD, metadata={"format": "pt"})
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(weights, SHARD)}
    _write_json(directory / "model.safetensors.index.json", index)
    _write_json(directory / "config.json", config(policy.spec))
    _write_json(directory / "preprocessor_config.json", preprocessor(policy.spec))
    write_statistics(directory, 1)
    tokenizer.write(directory / "tokenizer.json")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<PAD>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "right", "model_max_length": 256}
    _write_json(directory / "tokenizer_config.json", special | settings)
    end = policy.spec.action.end
    generation = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": end}
    _write_json(directory / "generation_config.json", generation)


def adapted(weight: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The weight of a linear or a convolution with its two LoRA factors merged in float32."""
    update = second.float().flatten(1) @ first.float().flatten(1)
    return weight.float() + LORA_SCALE * update.view(weight.shape)


def plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A policy's state dict under the checkpoint's names, its adapter, if any, merged in float32."""
    merged: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if ".lora_" in key:
            continue
        name = key.replace(".base_layer.", ".")
        factor = key.removesuffix("base_layer.weight") + "lora_{}.default.weight"
        if key.endswith("base_layer.weight") and factor.format("A") in state:
            tensor = adapted(tensor, state[factor.format("A")], state[factor.format("B")])
        merged[name] = tensor
    return merged


def read(directory: Path) -> OpenVLA:
    """The shipped weights in the training modules, float32."""
    path = directory / SHARD
    if not path.exists():
        raise CheckpointError(f"{path} is missing: train first, then `python -m benchmarks.demo_policy.ship`")
    policy = OpenVLA(demo_spec())
    weights = load_file(path)
    policy.load_state_dict({key: weights[key].float() for key in policy.state_dict()})
    return policy
