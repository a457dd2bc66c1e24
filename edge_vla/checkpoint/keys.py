"""The explicit table of a checkpoint's tensors: every key, its shape, and whether it reaches an action.

Each key of a checkpoint must be in the table and each live key of the table in the checkpoint; what the
network never runs (a tower's last block, final norm and pooling head) is named here as dead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from edge_vla.checkpoint.tensors import TensorSource
from edge_vla.errors import CheckpointError
from edge_vla.spec import DecoderSpec, PolicySpec, TowerSpec

TOWER_PREFIXES = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")
DECODER_PREFIX = "language_model.model."
EMBEDDINGS = DECODER_PREFIX + "embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
# What training frameworks put around a module; it is in the names when a model is saved without unwrapping.
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "base_model.model.", "module.")


@dataclass(frozen=True, slots=True)
class Key:
    shape: tuple[int, ...]
    live: bool = True


def key_table(spec: PolicySpec) -> dict[str, Key]:
    """Every tensor of a checkpoint of this shape, in a fixed order."""
    table: dict[str, Key] = {}
    for prefix, tower in zip(TOWER_PREFIXES[: len(spec.towers)], spec.towers, strict=True):
        table |= {prefix + name: key for name, key in _tower(tower)}
    widths = spec.projector_widths
    for i, (k, n) in enumerate(pairwise(widths), start=1):
        table[f"projector.fc{i}.weight"] = Key((n, k))
        table[f"projector.fc{i}.bias"] = Key((n,))
    table |= {DECODER_PREFIX + name: key for name, key in _decoder(spec.decoder)}
    table[HEAD] = Key((spec.decoder.vocab_rows, spec.decoder.width))
    return table


def layer_prefix(index: int) -> str:
    return f"{DECODER_PREFIX}layers.{index}."


def check_tensors(source: TensorSource, spec: PolicySpec) -> None:
    """Raise CheckpointError unless `source` holds exactly the table's tensors; dead ones may be absent."""
    table = key_table(spec)
    unknown = sorted(set(source.names()) - set(table))
    if unknown:
        why = _why_unknown(unknown, table)
        raise CheckpointError(f"{source} has {len(unknown)} unknown tensors, first {unknown[0]!r}: {why}")
    missing = [name for name, key in table.items() if key.live and name not in source.names()]
    if missing:
        raise CheckpointError(f"{source} lacks {len(missing)} tensors, first {missing[0]!r}: download it again")
    for name in source.names():
        if source.shape(name) != (shape := table[name].shape):
            raise CheckpointError(
                f"{source}: {name} is {source.shape(name)}, but config.json makes it {shape}"
                f"{_why_shape(name, source.shape(name), shape)}"
            )


def _why_unknown(unknown: Sequence[str], table: Mapping[str, Key]) -> str:
    """What happened to a checkpoint that names its tensors so, and what to do."""
    if any(".lora_" in name or ".base_layer." in name for name in unknown):
        return "adapters are in it that were not merged: save it again after merge_and_unload()"
    wrapper = next((one for one in WRAPPERS if unknown[0].startswith(one) or f".{one}" in unknown[0]), None)
    if wrapper is not None and unknown[0].replace(wrapper, "") in table:
        return f"they were saved from a wrapped model ({wrapper}): save the unwrapped one again"
    if unknown[0].replace(".gamma", ".scale_factor") in table:
        return "timm's own names, which transformers renames: convert with OpenVLA's convert_openvla_weights_to_hf.py"
    return "wrong config.json?"


def _why_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    if 0 in found:
        return ": it was saved without its numbers; under DeepSpeed ZeRO-3, gather the weights when you save"
    if name in (EMBEDDINGS, HEAD) and found[1:] == expected[1:]:
        return (
            f": the embeddings were resized to {found[0]} rows; set vocab_size in text_config to that, and "
            "pad_to_multiple_of to the rows that are no pieces of the tokenizer"
        )
    return ""


def vision_keys(spec: PolicySpec) -> list[str]:
    """Live keys of towers and projector, in table order."""
    return [name for name, key in key_table(spec).items() if key.live and not name.startswith("language_model.")]


def _tower(spec: TowerSpec) -> Iterator[tuple[str, Key]]:
    if spec.class_token:
        yield "cls_token", Key((1, 1, spec.width))
    if spec.registers:
        yield "reg_token", Key((1, spec.registers, spec.width))
    yield "pos_embed", Key((1, spec.patches, spec.width))
    yield "patch_embed.proj.weight", Key((spec.width, 3, spec.patch, spec.patch))
    yield "patch_embed.proj.bias", Key((spec.width,))
    for i in range(spec.depth):
        for name, shape in _block(spec).items():
            yield f"blocks.{i}.{name}", Key(shape, live=i < spec.used_blocks)
    yield "norm.weight", Key((spec.width,), live=False)
    yield "norm.bias", Key((spec.width,), live=False)
    if spec.attention_pool:
        for name, shape in _attention_pool(spec).items():
            yield f"attn_pool.{name}", Key(shape, live=False)


def _linear(name: str, n: int, k: int) -> Mapping[str, tuple[int, ...]]:
    return {f"{name}.weight": (n, k), f"{name}.bias": (n,)}


def _norm(name: str, width: int) -> Mapping[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _block(spec: TowerSpec) -> dict[str, tuple[int, ...]]:
    width = spec.width
    shapes = {
        **_norm("norm1", width),
        **_linear("attn.qkv", 3 * width, width),
        **_linear("attn.proj", width, width),
        **_norm("norm2", width),
        **_linear("mlp.fc1", spec.mlp_width, width),
        **_linear("mlp.fc2", width, spec.mlp_width),
    }
    return {**shapes, "ls1.scale_factor": (width,), "ls2.scale_factor": (width,)} if spec.layer_scale else shapes


def _attention_pool(spec: TowerSpec) -> dict[str, tuple[int, ...]]:
    width = spec.width
    return {
        "latent": (1, 1, width),
        **_linear("q", width, width),
        **_linear("kv", 2 * width, width),
        **_linear("proj", width, width),
        **_norm("norm", width),
        **_linear("mlp.fc1", spec.mlp_width, width),
        **_linear("mlp.fc2", width, spec.mlp_width),
    }


def _decoder(spec: DecoderSpec) -> Iterator[tuple[str, Key]]:
    yield "embed_tokens.weight", Key((spec.vocab_rows, spec.width))
    for i in range(spec.layers):
        for name, shape in spec.linears().items():
            yield f"layers.{i}.{name}.weight", Key(shape)
        yield f"layers.{i}.input_layernorm.weight", Key((spec.width,))
        yield f"layers.{i}.post_attention_layernorm.weight", Key((spec.width,))
    yield "norm.weight", Key((spec.width,))
