"""Whose policy a folder holds: many have OpenVLA's config and tensor names, and another way from them to an action.

What tells them apart lies beside the weights: parts saved as files of their own, code, a training run's layout. Knows
those signs, as the projects' own scripts write them. A folder that edge-vla cannot act for is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from edge_vla.checkpoint.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, INDEX, SINGLE
from edge_vla.openvla.config import read_json


class Kind(str, Enum):
    OPENVLA = "OpenVLA"
    V01 = "OpenVLA v0.1"
    ECOT = "ECoT"
    OFT = "OpenVLA-OFT"
    OTHER_HEAD = "a policy with a head of its own"
    MINIVLA = "MiniVLA"
    NATIVE = "a native Prismatic run"
    VLM = "a Prismatic VLM"
    ADAPTER = "a LoRA adapter"
    ARTIFACT = "an edge-vla artifact"
    RANDOM = "seeded random weights"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Recognised:
    """What a folder is and the sign of it; `refusal` says why it cannot be opened and what to do instead."""

    kind: Kind
    sign: str
    refusal: str | None = None
    doubts: tuple[str, ...] = ()


# openvla-oft's finetune.py saves each as NAME--STEP_checkpoint.pt; its loader looks for NAME and "checkpoint".
OFT_PARTS: Final = ("action_head", "proprio_projector", "noisy_action_projector", "vision_backbone")
OFT_PART: Final = re.compile(rf".*({'|'.join(OFT_PARTS)}).*\.(pt|pth|bin|safetensors)")
OTHER_PART: Final = re.compile(
    r".*(action|flow|diffusion|denois\w*|policy)[_-]?(head|expert|decoder|model).*\.(pt|pth|ckpt|bin|safetensors)"
)
OFT_CODE: Final = re.compile(r"NUM_ACTIONS_CHUNK|proprio_projector|noisy_action_projector")
ECOT_CODE: Final = re.compile(r"return\s*\(?\s*actions\s*,\s*generated_ids")
OFT_KEYS: Final = re.compile(
    r"(num_actions_chunk|action_chunk\w*|chunk_size|num_open_loop_steps|action_head\w*|use_(l1_regression|diffusion|film|"
    r"proprio)|num_images_in_input)"
)
OFT_NAME: Final = re.compile(r"parallel_dec|\d_acts_chunk|openvla-7b-oft|openvla-oft", re.I)
QWEN: Final = re.compile(r"qwen", re.I)
TO_HF: Final = "vla-scripts/extern/convert_openvla_weights_to_hf.py"


def recognise(directory: Path, adapters: tuple[Path, ...] = ()) -> Recognised:
    """What `directory` holds. `adapters` are those that the user gave, which may be this directory's own."""
    if not (directory / CONFIG).exists():
        return _without_config(directory)
    raw, names = read_json(directory / CONFIG), _names(directory)
    return (
        _prismatic(directory, raw)
        or _oft(directory, raw, names)
        or _ecot(directory, raw)
        or _with_adapter(directory, names, adapters)
        or _openvla(directory, raw, names)
    )


def recognise_names(source: str, names: Sequence[str]) -> Recognised:
    """What a Hub repository's file names alone tell, before its weights are fetched."""
    return _parts(source, names) or Recognised(Kind.UNKNOWN, "its file names")


def recognise_adapter(adapter: Path) -> Recognised:
    """Whose adapter it is: openvla-oft saves one in `lora_adapter/`, beside the parts that it was trained with."""
    around = adapter.resolve().parent
    part = next(filter(OFT_PART.fullmatch, [*_names(adapter), *_names(around)]), None)
    return _refuse_oft(str(adapter), part) if part else Recognised(Kind.ADAPTER, ADAPTER_CONFIG)


def _without_config(directory: Path) -> Recognised:
    if parts := _parts(str(directory), _names(directory)):
        return parts  # an openvla-oft run that was not merged yet
    if (directory / ADAPTER_CONFIG).exists():
        return Recognised(
            Kind.ADAPTER,
            f"{ADAPTER_CONFIG} and no {CONFIG}",
            f"{directory} is an adapter: give its base checkpoint, and this directory with --adapter",
        )
    if (directory / "manifest.json").exists():
        refusal = f"{directory} is an artifact: give the checkpoint that it was made from"
        return Recognised(Kind.ARTIFACT, f"manifest.json and no {CONFIG}", refusal)
    if _native(directory):
        return _refuse_native(directory, {})
    inside = sorted(path.parent for pattern in ("*", "snapshots/*") for path in directory.glob(f"{pattern}/{CONFIG}"))
    if inside:
        which = f"give {inside[0]}" if len(inside) == 1 else f"give one of {', '.join(map(str, inside[:4]))}"
        return Recognised(Kind.UNKNOWN, f"no {CONFIG}", f"{directory} holds folders of checkpoints: {which}")
    return Recognised(Kind.UNKNOWN, f"no {CONFIG}")


def _prismatic(directory: Path, raw: Mapping[str, object]) -> Recognised | None:
    text = raw.get("text_config")
    llama = str(raw.get("llm_backbone_id", "")) + str(text.get("model_type", "") if isinstance(text, Mapping) else "")
    if QWEN.search(llama):
        return _refuse_minivla(directory, f"{CONFIG} has a Qwen for its language model")
    if "model_type" not in raw and (isinstance(raw.get("vla"), Mapping) or isinstance(raw.get("model"), Mapping)):
        return _refuse_native(directory, raw)
    if _native(directory) and not any((directory / name).exists() for name in (SINGLE, INDEX)):
        return _refuse_native(directory, raw)
    if raw.get("model_type") == "prismatic":
        refusal = f"{directory} is a Prismatic VLM: it answers questions and has no actions; give a VLA made from it"
        return Recognised(Kind.VLM, "model_type 'prismatic'", refusal)
    return None


def _native(directory: Path) -> bool:
    return any((directory / "checkpoints").glob("*.pt"))


def _refuse_native(directory: Path, raw: Mapping[str, object]) -> Recognised:
    if QWEN.search(str(raw.get("vla", "")) + str(raw.get("model", ""))):
        return _refuse_minivla(directory, f"{CONFIG} of a native run with a Qwen for its language model")
    refusal = f"{directory} is a native Prismatic run (pickled checkpoints): convert it with OpenVLA's {TO_HF}"
    return Recognised(Kind.NATIVE, f"{CONFIG} and checkpoints/*.pt of prismatic's train.py", refusal)


def _refuse_minivla(directory: Path, sign: str) -> Recognised:
    refusal = f"{directory} is a MiniVLA ({sign}): a Qwen decoder and vector-quantised actions are not implemented"
    return Recognised(Kind.MINIVLA, sign, f"{refusal}; give an OpenVLA with a Llama")


def _oft(directory: Path, raw: Mapping[str, object], names: list[str]) -> Recognised | None:
    """openvla-oft keeps OpenVLA's config and tensors, and decodes a chunk of actions at once, often with a head."""
    if parts := _parts(str(directory), names):
        return parts
    sign = _oft_sign(directory, raw)
    return _refuse_oft(str(directory), sign) if sign else None


def _parts(source: str, names: Sequence[str]) -> Recognised | None:
    """A head or a projector that was saved as a file of its own."""
    if part := next(filter(OFT_PART.fullmatch, names), None):
        return _refuse_oft(source, part)
    if part := next(filter(OTHER_PART.fullmatch, names), None):
        refusal = f"{source} has an action head in a file of its own ({part}), which OpenVLA has not"
        return Recognised(Kind.OTHER_HEAD, part, f"{refusal}: use its own project's code, or move the file away")
    return None


def _refuse_oft(source: str, sign: str) -> Recognised:
    refusal = f"{source} is an OpenVLA-OFT policy ({sign}): its tensors give other actions without its parts"
    return Recognised(Kind.OFT, sign, f"{refusal}; not run yet: use openvla-oft, or move what is not this policy's")


def _names(directory: Path) -> list[str]:
    """Files of a folder, without those that macOS puts beside each on a foreign disk."""
    return sorted(path.name for path in directory.iterdir() if not path.is_dir() and not path.name.startswith("._"))


def _oft_sign(directory: Path, raw: Mapping[str, object]) -> str | None:
    for key, value in raw.items():
        if OFT_KEYS.fullmatch(key) and (value is True or value not in (None, 0, 1, "")):
            return f"{CONFIG}: {key} is {value!r:.40}"
    repository, code = _model_code(directory, raw)
    if OFT_NAME.search(repository):
        return f"{CONFIG}: auto_map points to {repository}"
    if code is not None and OFT_CODE.search(_text(code)):
        return f"{code.name} decodes chunks of actions"
    if (directory / "lora_adapter").is_dir() and OFT_NAME.search(str(directory)):
        return f"lora_adapter/ in a folder named {directory.name}"
    return None


def _ecot(directory: Path, raw: Mapping[str, object]) -> Recognised | None:
    _, code = _model_code(directory, raw)
    if code is None or not ECOT_CODE.search(_text(code)):
        return None
    sign = f"{code.name} returns its reasoning with the action"
    refusal = f"{directory} is an ECoT policy ({sign}): it writes up to 1024 tokens of reasoning before an action"
    return Recognised(Kind.ECOT, sign, f"{refusal}, which is not implemented; use embodied-CoT's own code")


def _with_adapter(directory: Path, names: list[str], adapters: tuple[Path, ...]) -> Recognised | None:
    """config.json, weights and an adapter in one folder: transformers' versions read three different policies."""
    weights = next((name for name in ADAPTER_WEIGHTS if name in names), None)
    given = any(adapter.resolve() == directory.resolve() for adapter in adapters if adapter.exists())
    if ADAPTER_CONFIG not in names or weights is None or given:
        return None
    base = read_json(directory / ADAPTER_CONFIG).get("base_model_name_or_path")
    refusal = (
        f"{directory} holds weights and an adapter: with peft, transformers 4.40 merges it into {base!r}, transformers "
        f"5 into these weights, which may have it already; give --adapter {directory} to merge it, or move "
        f"{ADAPTER_CONFIG} away to read the weights alone"
    )
    return Recognised(Kind.UNKNOWN, f"{ADAPTER_CONFIG} beside {CONFIG}", refusal)


def _openvla(directory: Path, raw: Mapping[str, object], names: list[str]) -> Recognised:
    model = raw.get("model_type")
    if model != "openvla":
        return Recognised(Kind.UNKNOWN, f"model_type {model!r}")
    vicuna = str(raw.get("llm_backbone_id", "vicuna-v15-7b")).startswith("vicuna")
    kind = Kind.V01 if vicuna else Kind.OPENVLA
    sign = f"model_type 'openvla', llm_backbone_id {raw.get('llm_backbone_id', 'absent')!r}"
    if vicuna and re.search("ecot", f"{directory.name} {raw.get('_name_or_path')}", re.I):
        kind = Kind.ECOT
    return Recognised(kind, sign, doubts=tuple(_doubts(kind, directory, raw, names)))


def _doubts(kind: Kind, directory: Path, raw: Mapping[str, object], names: list[str]) -> Iterator[str]:
    origin = raw.get("_name_or_path")
    if kind is Kind.ECOT:
        yield (
            "by its name this is an ECoT policy, which reasons in words before it acts: asked for seven action tokens "
            "at once, as here, it answers what it was not trained to"
        )
    yield from crop_doubt(directory)
    if kind is Kind.OPENVLA and "v01" in str(directory):
        yield (
            "its path holds 'v01', so OpenVLA's scripts would use the v0.1 prompt; its config.json has the Llama of "
            "openvla-7b: --prompt v01 if it was trained so"
        )
    if kind is Kind.V01 and isinstance(origin, str) and origin and "v01" not in origin:
        yield (
            f"fine-tuned from {origin!r}, a path without 'v01', for which OpenVLA's finetune.py trains with the other "
            "prompt: --prompt openvla if it was"
        )
    if (directory / "lora_adapter").is_dir():
        yield "lora_adapter/ is what openvla-oft's finetune.py saves: if this is an OFT run, its actions are others"
    if ADAPTER_CONFIG in names:
        yield f"{ADAPTER_CONFIG} is there without an adapter's weights: ignored, where transformers with peft fails"
    unused = [name for name in names if name.endswith(".py") and OFT_CODE.search(_text(directory / name))]
    if unused:
        yield f"{unused[0]} is openvla-oft's, but config.json's auto_map does not use it: read as a plain OpenVLA"


def crop_doubt(path: Path) -> Iterator[str]:
    """What the pictures of a run must be cropped to is said by its name alone, which OpenVLA's evaluation reads."""
    if "image_aug" in str(path):
        yield (
            f"{path.name} was trained on random crops (image_aug): OpenVLA's evaluation cuts the middle 90% of each "
            "picture's area out before the processor sees it (center_crop); --preprocess libero does so"
        )


def _model_code(directory: Path, raw: Mapping[str, object]) -> tuple[str, Path | None]:
    """The repository and the file that `auto_map` takes the model's class from; "" is the folder itself."""
    mapped = raw.get("auto_map")
    target = mapped.get("AutoModelForVision2Seq") if isinstance(mapped, Mapping) else None
    if not isinstance(target, str):
        return "", None
    repository, _, name = target.rpartition("--")
    path = directory / f"{name.partition('.')[0]}.py"
    return repository, path if not repository and path.is_file() else None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
