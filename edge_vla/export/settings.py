"""The JSON files of a Hugging Face directory: the source's own where it has them, else made from its config.

`edge_vla.openvla.config` reads back what is written here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edge_vla.artifact import TOKENIZER
from edge_vla.checkpoint import Checkpoint
from edge_vla.checkpoint.folder import ADAPTER_CONFIG, INDEX
from edge_vla.checkpoint.keys import DECODER_PREFIX
from edge_vla.checkpoint.quantised import SETTINGS
from edge_vla.errors import CheckpointError, UsageError
from edge_vla.export.shards import WRAPPER, write_json
from edge_vla.export.writer import ArtifactWriter
from edge_vla.interop import Gptq, Written
from edge_vla.openvla import PolicyConfig, PromptStyle
from edge_vla.openvla.config import BACKBONES, PROMPTS, read_json
from edge_vla.quant import sixteen
from edge_vla.spec import TOWERS, TowerSpec

CONFIG: Final = "config.json"
STATISTICS: Final = "dataset_statistics.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
REWRITTEN: Final = (CONFIG, TOKENIZER, INDEX, SETTINGS, ADAPTER_CONFIG)  # an adapter beside the weights is merged
COPIED: Final = ("*.json", "*.model", "*.py")  # the code is never run here
COPIED_OF_DECODER: Final = (TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", "generation_config.json")


def write_settings(checkpoint: Checkpoint, layout: Written, writer: ArtifactWriter, *, decoder_only: bool) -> None:
    """config.json with the format's `quantization_config`, and the other files that a loader looks for."""
    own = checkpoint.files[0][0].parent if checkpoint.files else None
    _copy(own, COPIED_OF_DECODER if decoder_only else COPIED, writer)
    writer.write(TOKENIZER, checkpoint.tokenizer_json.encode("utf-8"))
    if TOKENIZER_CONFIG not in writer.files:
        write_json(writer, TOKENIZER_CONFIG, _tokenizer_config(checkpoint))
    if decoder_only:
        settings = {"architectures": ["LlamaForCausalLM"], **_llama(checkpoint.config)}
    else:
        settings = read_json(own / CONFIG) if own else _openvla(checkpoint.config)
    if own is not None and not decoder_only:
        _say_what_was_chosen(own, checkpoint, settings, writer)
    settings["torch_dtype"] = str(sixteen(checkpoint.tensors.load(f"{DECODER_PREFIX}norm.weight")).dtype)[6:]
    quantised = layout.to_json((DECODER_PREFIX + "layers").removeprefix(WRAPPER if decoder_only else ""))
    write_json(writer, CONFIG, {**settings, "quantization_config": quantised})
    if isinstance(layout, Gptq):
        write_json(writer, SETTINGS, quantised)


def _say_what_was_chosen(
    own: Path, checkpoint: Checkpoint, settings: dict[str, object], writer: ArtifactWriter
) -> None:
    """Prompt and statistics where they are not those of the folder that config.json came from."""
    config, folder = checkpoint.config, _config(own)
    settings.pop("transformers_weights", None)  # it would name a file that is not written
    if folder is None or folder.prompt is not config.prompt:
        settings["llm_backbone_id"] = _language_backbone(config.prompt)
    if checkpoint.adapters or folder is None or folder.statistics.raw != config.statistics.raw:
        settings["norm_stats"] = config.statistics.raw
        write_json(writer, STATISTICS, config.statistics.raw)


def _copy(own: Path | None, patterns: tuple[str, ...], writer: ArtifactWriter) -> None:
    for path in sorted(path for pattern in patterns for path in own.glob(pattern)) if own else ():
        if path.name not in REWRITTEN and not path.name.endswith(".index.json"):
            writer.write(path.name, path.read_bytes())


def _tokenizer_config(checkpoint: Checkpoint) -> dict[str, object]:
    """Makes transformers use tokenizer.json as it is, with these special tokens."""
    from tokenizers import Tokenizer

    piece, decoder = Tokenizer.from_str(checkpoint.tokenizer_json).id_to_token, checkpoint.config.spec.decoder
    special = {"bos_token": piece(decoder.bos), "eos_token": piece(decoder.eos), "pad_token": piece(decoder.eos)}
    return {"tokenizer_class": "PreTrainedTokenizerFast", **special}


def _openvla(config: PolicyConfig) -> dict[str, object]:
    """config.json of the whole policy. UsageError for towers that OpenVLA has no vision_backbone_id for."""
    spec = config.spec
    names = tuple(tower.name for tower in spec.towers)
    backbone = next((name for name, towers in BACKBONES.items() if towers == names), None)
    if backbone is None:
        raise UsageError(f"no vision_backbone_id has the towers {names}: give a checkpoint with its own {CONFIG}")
    changes = [_changes(tower) for tower in spec.towers]
    return {
        "architectures": ["OpenVLAForActionPrediction"],
        "model_type": "openvla",
        "vision_backbone_id": backbone,
        "llm_backbone_id": _language_backbone(config.prompt),
        "arch_specifier": "no-align+fused-gelu-mlp" if spec.fused else "no-align+gelu-mlp",
        "use_fused_vision_backbone": spec.fused,
        "timm_model_ids": list(names),
        "timm_override_act_layers": [None for _ in names],
        **({"timm_model_kwargs": changes} if any(changes) else {}),
        "image_sizes": [tower.image_size for tower in spec.towers],
        "image_resize_strategy": config.image.resize,
        "n_action_bins": spec.action.bins,
        "pad_to_multiple_of": spec.decoder.vocab_rows - spec.action.end,
        "pad_token_id": spec.action.end,
        "norm_stats": config.statistics.raw,
        "text_config": _llama(config),
    }


def _language_backbone(prompt: PromptStyle) -> str:
    """What config.json calls the language backbone that was trained with this prompt."""
    return next(name for name, style in PROMPTS.items() if style is prompt)


def _config(own: Path) -> PolicyConfig | None:
    """As the folder alone has it; None if it could be read only with what the user gave."""
    try:
        return PolicyConfig.read(own)
    except CheckpointError:
        return None


def _changes(tower: TowerSpec) -> dict[str, object]:
    """The arguments with which timm builds a tower that differs from the one of its name; none where it does not."""
    ours, named = (_timm_arguments(spec) for spec in (tower, TOWERS[tower.name]))
    return {} if ours == named else ours


def _timm_arguments(tower: TowerSpec) -> dict[str, object]:
    ratio = tower.mlp_width / tower.width
    return {"embed_dim": tower.width, "depth": tower.depth, "num_heads": tower.heads, "mlp_ratio": ratio}


def _llama(config: PolicyConfig) -> dict[str, object]:
    decoder = config.spec.decoder
    return {
        "model_type": "llama",
        "vocab_size": decoder.vocab_rows,
        "hidden_size": decoder.width,
        "intermediate_size": decoder.mlp_width,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "max_position_embeddings": decoder.max_positions,
        "rms_norm_eps": decoder.norm_eps,
        "rope_theta": decoder.rope_theta,
        "bos_token_id": decoder.bos,
        "eos_token_id": decoder.eos,
        "pad_token_id": config.spec.action.end,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
