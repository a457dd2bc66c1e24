"""config.json, preprocessor_config.json and statistics -> the dimensions and contracts of one policy.

A key that is absent or null takes the default of upstream's own config class. A backbone or resize strategy that is
not implemented is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from edge_vla import typed_json
from edge_vla.errors import CheckpointError
from edge_vla.files import stand_in
from edge_vla.openvla.image import ImageContract
from edge_vla.openvla.prompt import PromptStyle
from edge_vla.openvla.statistics import Statistics
from edge_vla.spec import TOWERS, ActionSpec, DecoderSpec, PolicySpec, TowerSpec

PREPROCESSOR: Final = "preprocessor_config.json"
PROCESSOR: Final = "processor_config.json"
LLAMA: Final = DecoderSpec()
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
class RopeParameters:
    """Where newer transformers keep what was `rope_theta` and `rope_scaling`."""

    rope_type: str = "default"
    rope_theta: int | float | None = None


@dataclass(frozen=True)
class TextConfig:
    """What is read of `text_config`, transformers' `LlamaConfig`."""

    model_type: str = "llama"  # of every llm_backbone_id that is supported
    hidden_act: str = "silu"
    vocab_size: int = LLAMA.vocab_rows
    hidden_size: int = LLAMA.width
    intermediate_size: int = LLAMA.mlp_width
    num_hidden_layers: int = LLAMA.layers
    num_attention_heads: int = LLAMA.heads
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = LLAMA.max_positions
    rms_norm_eps: float = LLAMA.norm_eps
    rope_theta: int | float = LLAMA.rope_theta  # an integer stays one: it is hashed
    rope_scaling: object = None
    rope_parameters: RopeParameters | None = None
    bos_token_id: int | list[int] = LLAMA.bos
    eos_token_id: int | list[int] = LLAMA.eos
    tie_word_embeddings: bool | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None


@dataclass(frozen=True)
class OpenVLAConfig:
    """What is read of config.json."""

    text_config: TextConfig = field(default_factory=TextConfig)
    n_action_bins: int = 256
    pad_to_multiple_of: int = 64
    vision_backbone_id: str = "siglip-vit-so400m"
    llm_backbone_id: str = "vicuna-v15-7b"
    image_resize_strategy: str = "letterbox"
    use_fused_vision_backbone: bool | None = None
    timm_model_ids: list[str] | None = None
    image_sizes: list[int] | None = None
    timm_model_kwargs: list[dict[str, float]] | None = None
    timm_override_act_layers: list[str | None] | None = None
    norm_stats: object = None


@dataclass(frozen=True)
class PolicyConfig:
    """Everything about a policy but its weights and its tokenizer."""

    spec: PolicySpec
    prompt: PromptStyle
    image: ImageContract
    statistics: Statistics

    @staticmethod
    def read(directory: Path, statistics: Statistics | None = None) -> PolicyConfig:
        """From a Hugging Face directory. `dataset_statistics.json` replaces config.json's statistics.

        `statistics` are used in place of the directory's, which are then not read.
        """
        path = directory / "config.json"
        raw = read_json(path)
        if raw.get("model_type") != "openvla":
            raise CheckpointError(f"config.json: model_type is {raw.get('model_type')!r}, expected 'openvla'")
        try:
            config = typed_json.from_json(OpenVLAConfig, _without_nulls(raw), "config", ignore_unknown=True)
            spec = _spec(config)
        except ValueError as error:
            raise CheckpointError(f"{path} is malformed ({error}): download it again") from error
        if (preprocessor := read_preprocessor(directory)) is not None:
            image = ImageContract.from_preprocessor(preprocessor, size=spec.image_size, towers=len(spec.towers))
        else:
            image = _default_image(spec, config)
        if statistics is None:
            statistics = read_statistics(directory) or Statistics(
                config.norm_stats or {}, f"{directory} (no dataset_statistics.json, and config.json)"
            )
        return PolicyConfig(spec, _prompt(config), image, statistics)


def read_preprocessor(directory: Path) -> object | None:
    """The image processor's settings, None if the directory has none.

    transformers 5 saves them inside processor_config.json; where both are there, it is the older file that OpenVLA's
    pinned transformers reads.
    """
    if (own := directory / PREPROCESSOR).exists():
        return read_json(own)
    return read_json(shared).get("image_processor") if (shared := directory / PROCESSOR).exists() else None


def read_statistics(directory: Path) -> Statistics | None:
    """`dataset_statistics.json` of a directory; None if it has none."""
    path = directory / "dataset_statistics.json"
    return Statistics(read_json(path), path.name) if path.exists() else None


def read_statistics_file(path: Path) -> Statistics:
    """A dataset_statistics.json, or the `norm_stats` of a config.json."""
    raw = read_json(path)
    return Statistics(raw.get("norm_stats", {}) if "model_type" in raw else raw, str(path))


def read_json(path: Path) -> dict[str, object]:
    """A file that holds a JSON object, else CheckpointError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: expected a Hugging Face checkpoint directory there") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        if reason := stand_in(path):
            raise CheckpointError(f"{path} is {reason}") from error
        raise CheckpointError(f"{path} is not valid JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _without_nulls(raw: Mapping[str, object]) -> dict[str, object]:
    """A null means the default, in text_config too."""
    kept = {key: value for key, value in raw.items() if value is not None}
    text = kept.get("text_config")
    return {**kept, "text_config": _without_nulls(text)} if isinstance(text, Mapping) else kept


def _first(ids: int | list[int]) -> int:
    """Newer configs may list several."""
    if isinstance(ids, list):
        if not ids:
            raise ValueError("a list of token ids is empty")
        return ids[0]
    return ids


def _spec(config: OpenVLAConfig) -> PolicySpec:
    backbone = config.vision_backbone_id
    if backbone not in BACKBONES:
        raise CheckpointError(f"config.json: vision_backbone_id {backbone!r}; supported: {sorted(BACKBONES)}")
    names = config.timm_model_ids or BACKBONES[backbone]
    largest = max(TOWERS[name].image_size for name in BACKBONES[backbone])
    sizes = config.image_sizes or [largest] * len(names)
    changes = config.timm_model_kwargs or [{}] * len(names)
    fused = config.use_fused_vision_backbone
    fused = backbone.startswith("dinosiglip") if fused is None else fused
    if not len(names) == len(sizes) == len(changes) == (2 if fused else 1):
        raise CheckpointError(
            f"config.json: {len(names)} towers, {len(sizes)} image sizes, {len(changes)} timm_model_kwargs for "
            f"use_fused_vision_backbone={fused}: expected one of each per tower"
        )
    activations = config.timm_override_act_layers
    if len(set(sizes)) != 1 or any(activations or ()):
        raise CheckpointError(f"config.json: image_sizes {sizes} must be equal, activations {activations} all null")
    towers = tuple(_tower(*tower) for tower in zip(names, sizes, changes, strict=True))
    decoder = _decoder(config.text_config)
    return PolicySpec(towers, decoder, ActionSpec(config.n_action_bins, decoder.vocab_rows - config.pad_to_multiple_of))


def _tower(name: str, size: int, changes: Mapping[str, float]) -> TowerSpec:
    if name not in TOWERS:
        raise CheckpointError(f"config.json: tower {name!r}; supported: {sorted(TOWERS)}")
    known = {"embed_dim", "depth", "num_heads", "mlp_ratio"}
    if set(changes) - known:
        raise CheckpointError(f"config.json: timm_model_kwargs {sorted(set(changes) - known)}; known: {sorted(known)}")
    tower = TOWERS[name]
    width = int(changes.get("embed_dim", tower.width))
    return replace(
        tower,
        image_size=size,
        width=width,
        depth=int(changes.get("depth", tower.depth)),
        heads=int(changes.get("num_heads", tower.heads)),
        mlp_width=int(width * changes.get("mlp_ratio", tower.mlp_width / tower.width)),
    )


def _decoder(text: TextConfig) -> DecoderSpec:
    rope = text.rope_parameters or RopeParameters()
    scaled = _scaled(text.rope_scaling) or rope.rope_type != "default"
    if text.model_type != "llama" or scaled or text.hidden_act != "silu":
        raise CheckpointError(f"config.json: text_config must be a plain Llama (silu, no rope scaling), got {text}")
    if text.tie_word_embeddings or text.attention_bias or text.mlp_bias:
        raise CheckpointError(f"config.json: text_config must have its own head and no biases, got {text}")
    heads = text.num_attention_heads
    spec = DecoderSpec(
        vocab_rows=text.vocab_size,
        width=text.hidden_size,
        mlp_width=text.intermediate_size,
        layers=text.num_hidden_layers,
        heads=heads,
        kv_heads=heads if text.num_key_value_heads is None else text.num_key_value_heads,
        max_positions=text.max_position_embeddings,
        norm_eps=text.rms_norm_eps,
        rope_theta=text.rope_theta if rope.rope_theta is None else rope.rope_theta,
        bos=_first(text.bos_token_id),
        eos=_first(text.eos_token_id),
    )
    if text.head_dim not in (None, spec.head_width):
        raise CheckpointError(f"config.json: head_dim {text.head_dim}, but width over heads is {spec.head_width}")
    return spec


def _scaled(rope_scaling: object) -> bool:
    """Whether positions are scaled: "default", under its old name or its new, is no scaling."""
    if not isinstance(rope_scaling, Mapping):
        return bool(rope_scaling)
    return rope_scaling.get("rope_type", rope_scaling.get("type")) != "default" and bool(rope_scaling)


def _prompt(config: OpenVLAConfig) -> PromptStyle:
    """Chosen by the language backbone; upstream looks for 'v01' in the path, which a rename breaks."""
    if config.llm_backbone_id not in PROMPTS:
        raise CheckpointError(f"config.json: llm_backbone_id {config.llm_backbone_id!r}; supported: {sorted(PROMPTS)}")
    return PROMPTS[config.llm_backbone_id]


def _default_image(spec: PolicySpec, config: OpenVLAConfig) -> ImageContract:
    constants = [CONSTANTS[tower.layer_scale] for tower in spec.towers]
    means, deviations = tuple(mean for mean, _ in constants), tuple(deviation for _, deviation in constants)
    if config.image_resize_strategy == "letterbox":
        fill = tuple(int(value * 255) for value in means[0])
        return ImageContract(spec.image_size, "letterbox", means, deviations, fill)
    return ImageContract(spec.image_size, "resize-naive", means, deviations)
