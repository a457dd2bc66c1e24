"""Before an export starts: prompts, pixel values and actions computed another way, beside ours.

A golden frame asks our own path, so it cannot show that the path itself is wrong. Here transformers reads the prompt,
torch's resize and preprocessor_config.json's own transforms make the pixels, and OpenVLA's formula the action. Knows
nothing of weights.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from edge_vla.checkpoint import Checkpoint
from edge_vla.errors import CheckpointError
from edge_vla.openvla import ActionTokens, Prompter, as_rgb, preprocess
from edge_vla.openvla.tokenizer import ADDED_TOKENS, CONFIG, FILE, LLAMA, SPECIAL_TOKENS
from edge_vla.runtime.golden import ACTION, quarters

PREPROCESSOR: Final = "preprocessor_config.json"
PROCESSOR: Final = "processor_config.json"
PROBES: Final = ("Pick up  the red cup.", "naïve café: 3/4 </s> <s>\n", "把杯子放在盘子上")
ODD_PICTURE: Final = (251, 187)  # width, height: neither square nor a multiple of anything
PIXELS: Final = 0.02  # of a quarter's mean: torch's bicubic rounds otherwise than Pillow's, by less


def compare(checkpoint: Checkpoint, instructions: Sequence[str], image: Image.Image) -> str:
    """What was compared with what, in one line. CheckpointError names the first that differs."""
    folders = list(dict.fromkeys(path.parent for files in checkpoint.files for path in files))
    compared = [_prompts(checkpoint, folder, [*instructions, *PROBES]) for folder in folders]
    odd = image.convert("RGB").resize(ODD_PICTURE)
    compared += [_pixels(checkpoint, folder, [image, odd]) for folder in folders[:1]]
    _actions(checkpoint)
    return "; ".join(line for line in compared if line) or "no tokenizer of another program to compare prompts with"


def _prompts(checkpoint: Checkpoint, folder: Path, instructions: Sequence[str]) -> str:
    if not (folder / FILE).is_file() or not (folder / CONFIG).is_file():
        return ""
    config = checkpoint.config
    prompter = Prompter(checkpoint.tokenizer_json, config.prompt, config.spec.decoder)
    try:
        import transformers

        with tempfile.TemporaryDirectory() as copy, _quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                _copy(folder, Path(copy)), local_files_only=True, trust_remote_code=False
            )
    except ImportError:
        return "prompts not compared: transformers is not installed"
    except Exception as error:  # noqa: BLE001  another program's, which raises anything: not a word against the folder
        return f"prompts not compared: transformers cannot load this tokenizer ({str(error).strip()[:80]!r})"
    for instruction in instructions:
        text = prompter.text(instruction)
        ours, theirs = list(prompter.encode(text)), list(tokenizer(text, padding=False, truncation=None)["input_ids"])
        if ours != theirs:
            raise CheckpointError(
                f"{folder}: the prompt of {instruction!r} is {len(ours)} tokens here, {len(theirs)} by transformers "
                f"{transformers.__version__}: {CONFIG} and {FILE} disagree; take both from the base model"
            )
    return f"{len(instructions)} prompts as transformers {transformers.__version__} reads them"


def _copy(folder: Path, copy: Path) -> Path:
    """The tokenizer alone: no code, no tokenizer.model, and the config as 4.40.1 takes it.

    Newer transformers has other defaults for Llama's class, and for other classes honours what 4.40.1 does not.
    """
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    for key in ("split_special_tokens", "auto_map", "add_prefix_space"):
        config.pop(key, None)
    for key, usual in (("add_bos_token", True), ("add_eos_token", False)):
        given = config.pop(key, usual)
        if config.get("tokenizer_class") in LLAMA:
            config[key] = given
    (copy / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    (copy / "config.json").write_text('{"model_type": "openvla"}', encoding="utf-8")
    for name in (FILE, SPECIAL_TOKENS, ADDED_TOKENS):
        if (folder / name).is_file():
            (copy / name).write_bytes((folder / name).read_bytes())
    return copy


def _pixels(checkpoint: Checkpoint, folder: Path, images: Sequence[Image.Image]) -> str:
    """By the transforms that the processor's file writes out one by one, in torch."""
    name, raw = _image_processor(folder)
    if not raw:
        return ""
    for image in images:
        ours = quarters(preprocess(as_rgb(image), checkpoint.config.image))
        theirs = quarters(_transformed(raw, as_rgb(image)).numpy())
        moved = float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else np.inf
        if moved > PIXELS:
            raise CheckpointError(
                f"{folder / name}: its transforms give pixel values up to {moved:.3f} from ours in a quarter's mean: "
                "it does not fit config.json; download both again"
            )
    return f"pixels of {len(images)} pictures as {name} transforms them"


def _image_processor(folder: Path) -> tuple[str, Mapping[str, Any]]:
    """The name and content of the file that saves the transforms: transformers 5 has them in the second."""
    if (folder / PREPROCESSOR).is_file():
        return PREPROCESSOR, json.loads((folder / PREPROCESSOR).read_text(encoding="utf-8"))
    if (folder / PROCESSOR).is_file():
        return PROCESSOR, json.loads((folder / PROCESSOR).read_text(encoding="utf-8")).get("image_processor") or {}
    return "", {}


def _transformed(raw: Mapping[str, Any], image: Image.Image) -> torch.Tensor:
    """(3 x towers, H, W) float32."""
    levels = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1)[None] / 255
    if raw.get("tvf_do_letterbox"):
        levels = _letterboxed(levels, raw.get("tvf_letterbox_fill") or raw["tvf_normalize_params"][0]["mean"])
    parts = []
    crops = raw.get("tvf_crop_params") or [{"output_size": size[-2:]} for size in raw["input_sizes"]]
    for resize, crop, constants in zip(raw["tvf_resize_params"], crops, raw["tvf_normalize_params"], strict=True):
        size, (height, width) = resize["size"], levels.shape[-2:]
        scale = size / min(height, width) if isinstance(size, int) else 0.0
        target = (int(height * scale), int(width * scale)) if isinstance(size, int) else tuple(size)
        resized = F.interpolate(levels, target, mode="bicubic", antialias=True).clamp(0, 1)
        rows, columns = crop["output_size"]
        top, left = round((target[0] - rows) / 2), round((target[1] - columns) / 2)
        mean, deviation = (torch.tensor(constants[name])[:, None, None] for name in ("mean", "std"))
        parts.append((resized[0, :, top : top + rows, left : left + columns] - mean) / deviation)
    return torch.cat(parts)


def _letterboxed(levels: torch.Tensor, fill: Sequence[float]) -> torch.Tensor:
    height, width = levels.shape[-2:]
    longer = max(height, width)
    left, top = (longer - width) // 2, (longer - height) // 2
    colour = torch.tensor([int(value * 255) if value <= 1 else int(value) for value in fill]) / 255
    padded = colour[None, :, None, None].expand(1, 3, height + 2 * top, width + 2 * left).clone()
    padded[:, :, top : top + height, left : left + width] = levels
    return padded


def _actions(checkpoint: Checkpoint) -> None:
    """OpenVLA's own formula over every data set's raw statistics, for the ends and the middle of the bins."""
    spec, tokens = checkpoint.config.spec.action, ActionTokens(checkpoint.config.spec.action)
    edges = np.linspace(-1, 1, spec.bins)
    centres = (edges[:-1] + edges[1:]) / 2.0
    for key, entry in checkpoint.config.statistics.raw.items():
        action: Mapping[str, Any] = entry["action"]  # type: ignore[assignment]
        high, low = np.array(action["q99"], dtype=float), np.array(action["q01"], dtype=float)
        mask = np.array(action.get("mask", np.ones(len(low))), dtype=bool)
        for token in (spec.end - 1, spec.end - spec.bins // 2, spec.end - spec.bins, spec.first):
            chosen = centres[np.clip(np.full(len(low), spec.end - token - 1), 0, len(centres) - 1)]
            theirs = np.where(mask, 0.5 * (chosen + 1) * (high - low) + low, chosen)
            ours = checkpoint.config.statistics[key].unnormalise(tokens.decode([token] * len(low)))
            if not np.allclose(ours, theirs, ACTION, ACTION, equal_nan=True):
                raise CheckpointError(f"data set {key!r}: token {token} means {ours}, by OpenVLA's formula {theirs}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' remarks, which are about models that it does not run."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
