"""config.json, preprocessor_config.json and statistics -> the dimensions and contracts of one policy.

Reads what the checkpoint says and falls back only on what upstream's own config class would fall back on;
a backbone or resize strategy that we do not implement is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from edge_vla.errors import CheckpointError
from edge_vla.openvla.image import ImageContract
from edge_vla.openvla.prompt import PromptStyle
from edge_vla.openvla.statistics import Statistics
from edge_vla.spec import TOWERS, ActionSpec, DecoderSpec, PolicySpec, TowerSpec

BACKBONES: Final[Mapping[str, tuple[str, ...]]] = {
    "dinosiglip-vit-so-224px": ("vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"),
    "dinosiglip-vit-so-384px": ("vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_384"),
    "siglip-vit-so400m": ("vit_so400m_patch14_siglip_224",),
    "siglip-vit-so400m-384px": ("vit_so400m_patch14_siglip_384",),
}
PROMPTS: Final[Mapping[str, PromptStyle]] = {
    "llama2-7b-pure": PromptStyle.OPENVLA,
    "vicuna-v15-7b": PromptStyle.V01,
}
# Rounded to bfloat16, as the release script did when it built the transforms.
CONSTANTS: Final[Mapping[bool, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    True: ((0.484375, 0.455078125, 0.40625), (0.228515625, 0.2236328125, 0.224609375)),
    False: ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


@dataclass(frozen=True)
class PolicyConfig:
    spec: PolicySpec
    prompt: PromptStyle
    image: ImageContract
    statistics: Statistics

    @staticmethod
    def read(directory: Path) -> PolicyConfig:
        """From a Hugging Face directory. `dataset_statistics.json` replaces config.json's statistics."""
        config = read_json(directory / "config.json")
        try:
            spec = _spec(config)
        except (TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{directory / 'config.json'} is malformed ({error}): download it again") from error
        preprocessor = directory / "preprocessor_config.json"
        if preprocessor.exists():
            image = ImageContract.from_preprocessor(
                read_json(preprocessor), size=spec.image_size, towers=len(spec.towers)
            )
        else:
            image = _default_image(spec, config)
        return PolicyConfig(spec, _prompt(config), image, read_statistics(directory, config))


def read_statistics(directory: Path, config: Mapping[str, Any]) -> Statistics:
    path = directory / "dataset_statistics.json"
    if path.exists():
        return Statistics(read_json(path), path.name)
    return Statistics(config.get("norm_stats") or {}, f"{directory} (no dataset_statistics.json, and config.json)")


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: expected a Hugging Face checkpoint directory there") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _spec(config: Mapping[str, Any]) -> PolicySpec:
    if config.get("model_type") != "openvla":
        raise CheckpointError(f"config.json: model_type is {config.get('model_type')!r}, expected 'openvla'")
    backbone = config.get("vision_backbone_id", "siglip-vit-so400m")
    if backbone not in BACKBONES:
        raise CheckpointError(f"config.json: vision_backbone_id {backbone!r}; supported: {sorted(BACKBONES)}")
    names: Sequence[str] = config.get("timm_model_ids") or BACKBONES[backbone]
    native = max(TOWERS[name].image_size for name in BACKBONES[backbone])
    sizes: Sequence[int] = config.get("image_sizes") or [native] * len(names)
    changes: Sequence[Mapping[str, Any]] = config.get("timm_model_kwargs") or [{}] * len(names)
    activations = config.get("timm_override_act_layers") or [None] * len(names)
    fused = config.get("use_fused_vision_backbone")
    fused = backbone.startswith("dinosiglip") if fused is None else fused
    if not len(names) == len(sizes) == len(changes) == (2 if fused else 1):
        raise CheckpointError(
            f"config.json: {len(names)} towers, {len(sizes)} image sizes, {len(changes)} timm_model_kwargs for "
            f"use_fused_vision_backbone={fused}: one of each per tower"
        )
    if len(set(sizes)) != 1 or any(activations):
        raise CheckpointError(f"config.json: image_sizes {sizes} must be equal, activations {activations} all null")
    towers = tuple(_tower(*tower) for tower in zip(names, sizes, changes, strict=True))
    try:
        decoder = _decoder(config["text_config"])
        action = ActionSpec(
            bins=int(config["n_action_bins"]), end=decoder.vocab_rows - int(config["pad_to_multiple_of"])
        )
    except KeyError as error:
        raise CheckpointError(f"config.json lacks {error}") from error
    return PolicySpec(towers, decoder, action)


def _tower(name: str, size: int, changes: Mapping[str, Any]) -> TowerSpec:
    if name not in TOWERS:
        raise CheckpointError(f"config.json: tower {name!r}; supported: {sorted(TOWERS)}")
    known = {"embed_dim", "depth", "num_heads", "mlp_ratio"}
    if set(changes) - known:
        raise CheckpointError(f"config.json: timm_model_kwargs {sorted(set(changes) - known)}; known: {sorted(known)}")
    tower = TOWERS[name]
    width = int(changes.get("embed_dim", tower.width))
    ratio = float(changes.get("mlp_ratio", tower.mlp_width / tower.width))
    return replace(
        tower,
        image_size=int(size),
        width=width,
        depth=int(changes.get("depth", tower.depth)),
        heads=int(changes.get("num_heads", tower.heads)),
        mlp_width=int(width * ratio),
    )


def _decoder(text: Mapping[str, Any]) -> DecoderSpec:
    rope = text.get("rope_parameters") or {}  # where newer transformers keep what was rope_theta and rope_scaling
    scaled = text.get("rope_scaling") or rope.get("rope_type", "default") != "default"
    if text.get("model_type") != "llama" or scaled or text.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"config.json: text_config must be a plain Llama (silu, no rope scaling), got {text}")
    if text.get("tie_word_embeddings") or text.get("attention_bias") or text.get("mlp_bias"):
        raise CheckpointError(f"config.json: text_config must have its own head and no biases, got {text}")
    text = {**text, **{key: value for key, value in rope.items() if key == "rope_theta"}}
    names = {
        "vocab_rows": "vocab_size",
        "width": "hidden_size",
        "mlp_width": "intermediate_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "max_positions": "max_position_embeddings",
        "norm_eps": "rms_norm_eps",
        "rope_theta": "rope_theta",
        "bos": "bos_token_id",
        "eos": "eos_token_id",
    }
    given = {ours: text[theirs] for ours, theirs in names.items() if theirs in text}
    heads = given.get("heads", DecoderSpec().heads)
    spec = DecoderSpec(**given, kv_heads=text.get("num_key_value_heads", heads))
    if text.get("head_dim", spec.head_width) != spec.head_width:
        raise CheckpointError(f"config.json: head_dim {text['head_dim']}, but width over heads is {spec.head_width}")
    return spec


def _prompt(config: Mapping[str, Any]) -> PromptStyle:
    """Chosen by the language backbone; upstream goes by 'v01' in the path, which a rename breaks."""
    backbone = config.get("llm_backbone_id", "vicuna-v15-7b")
    if backbone not in PROMPTS:
        raise CheckpointError(f"config.json: llm_backbone_id {backbone!r}; supported: {sorted(PROMPTS)}")
    return PROMPTS[backbone]


def _default_image(spec: PolicySpec, config: Mapping[str, Any]) -> ImageContract:
    constants = [CONSTANTS[tower.layer_scale] for tower in spec.towers]
    means, deviations = tuple(mean for mean, _ in constants), tuple(deviation for _, deviation in constants)
    if config.get("image_resize_strategy", "letterbox") == "letterbox":
        return ImageContract(
            spec.image_size, "letterbox", means, deviations, tuple(int(value * 255) for value in means[0])
        )
    return ImageContract(spec.image_size, "resize-naive", means, deviations)
