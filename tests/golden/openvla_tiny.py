"""A small OpenVLA checkpoint in the Hub's layout, and what the original code computed with it.

Reads `openvla_tiny.npz` and `openvla_tiny.json` beside it, which `make_openvla_tiny.py` cut from a full run.
The vocabulary matrices hold only the rows that the cases read or that come near to winning an argmax; every
other row is rebuilt as zeros. Tests must therefore not compare logits outside `Case.logit_ids`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .storage import write_safetensors

FOLDER: Final = Path(__file__).parent
FILLER_SCORE: Final = -100.0

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    """One image and one instruction, and what the original code made of them in float32, stage by stage.

    `patch_rows` and `hidden_rows` name the rows that `patches`/`projected` and `prefill_hidden` were cut to;
    `logit_ids` the columns that `logits` was cut to. Every other logit was below the smallest value that
    wins its step, so the argmax over `logit_ids` is the argmax over the whole vocabulary.
    """

    name: str
    instruction: str
    unnorm_key: str
    prompt: str
    image: Bytes  # (H, W, 3)
    prompt_ids: tuple[int, ...]  # BOS first, the lone space 29871 last
    pixel_values_shape: tuple[int, ...]  # (6, 224, 224)
    pixel_values_sha256: str  # of the C-order float32 bytes
    pixel_values_sample: Floats  # pixel_values[:, ::32, ::32], to show where a mismatch lies
    patch_rows: tuple[int, ...]
    patches: Floats  # (len(patch_rows), 136): both towers, side by side
    projected: Floats  # (len(patch_rows), 128)
    hidden_rows: tuple[int, ...]  # negative: counted from the end of the prefill
    prefill_length: int
    prefill_hidden: Floats  # (len(hidden_rows), 128), after the final norm
    logit_ids: Integers  # ascending token ids
    logits: Floats  # (7, len(logit_ids))
    token_ids: tuple[int, ...]
    top2_margin: Floats  # (7,): winner less runner-up
    normalized: Doubles  # (7,)
    action: Doubles  # (7,)


@dataclass(frozen=True)
class Prompt:
    """A prompt and its ids: BOS first, the lone space 29871 not yet appended."""

    text: str
    ids: tuple[int, ...]


@cache
def _table() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / "openvla_tiny.json").read_text(encoding="utf-8"))
    return loaded


@cache
def _arrays() -> dict[str, npt.NDArray[Any]]:
    with np.load(FOLDER / "openvla_tiny.npz") as stored:
        return {name: stored[name] for name in stored.files}


def cases() -> list[Case]:
    """The three cases: two camera sizes that need resizing, one that does not."""
    arrays = _arrays()
    return [
        Case(
            name=row["name"],
            instruction=row["instruction"],
            unnorm_key=row["unnorm_key"],
            prompt=row["prompt"],
            image=arrays[f"{row['name']}/image"].copy(),
            prompt_ids=tuple(row["prompt_ids"]),
            pixel_values_shape=tuple(row["pixel_values_shape"]),
            pixel_values_sha256=row["pixel_values_sha256"],
            pixel_values_sample=arrays[f"{row['name']}/pixel_values_sample"].copy(),
            patch_rows=tuple(row["patch_rows"]),
            patches=arrays[f"{row['name']}/patches"].copy(),
            projected=arrays[f"{row['name']}/projected"].copy(),
            hidden_rows=tuple(row["hidden_rows"]),
            prefill_length=row["prefill_length"],
            prefill_hidden=arrays[f"{row['name']}/prefill_hidden"].copy(),
            logit_ids=arrays["lm_head_ids"].astype(np.int64),
            logits=arrays[f"{row['name']}/logits"].copy(),
            token_ids=tuple(row["token_ids"]),
            top2_margin=arrays[f"{row['name']}/top2_margin"].copy(),
            normalized=arrays[f"{row['name']}/normalized"].copy(),
            action=arrays[f"{row['name']}/action"].copy(),
        )
        for row in _table()["cases"]
    ]


def prompts() -> list[Prompt]:
    """Prompts beyond the cases that the cut tokenizer still splits as the full one does: v0.1 and an empty one."""
    return [Prompt(text=row["text"], ids=tuple(row["ids"])) for row in _table()["prompts"]]


def bfloat16_tensors() -> dict[str, tuple[str, npt.NDArray[np.uint16]]]:
    """Every tensor of the checkpoint as bfloat16 bit patterns: key to (shard file, array)."""
    arrays = _arrays()
    flat = (arrays["weights_high"].astype(np.uint16) << 8) | arrays["weights_low"]
    tensors: dict[str, tuple[str, npt.NDArray[np.uint16]]] = {}
    start = 0
    for row in _table()["tensors"]:
        shape: list[int] = row["shape"]
        kept = arrays[row["rows"]].astype(np.int64) if row["rows"] else None
        count = int(np.prod(shape)) if kept is None else len(kept) * int(np.prod(shape[1:]))
        values = flat[start : start + count]
        start += count
        if kept is None:
            whole = values.reshape(shape)
        else:
            whole = np.zeros(shape, np.uint16)
            whole[kept] = values.reshape(len(kept), *shape[1:])
        tensors[row["key"]] = (row["shard"], whole)
    assert start == len(flat), f"the table covers {start} weights, the file holds {len(flat)}"
    return tensors


def tokenizer_json() -> dict[str, Any]:
    """The `tokenizers` file: the few pieces the prompts need, filler everywhere else."""
    table = _table()["tokenizer"]
    vocabulary: list[list[Any]] = [[f"<unused_{index}>", FILLER_SCORE] for index in range(table["size"])]
    for byte in range(256):
        vocabulary[table["first_byte"] + byte] = [f"<0x{byte:02X}>", table["byte_score"]]
    for index, piece, score in table["pieces"]:
        vocabulary[index] = [piece, score]
    rest: dict[str, Any] = dict(table["rest"])
    rest["model"] = {**table["model"], "vocab": vocabulary}
    return rest


def write_checkpoint(directory: Path) -> Path:
    """Rebuild the Hugging Face directory (config, statistics, processor, tokenizer, shards) and return it."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in _table()["files"].items():
        _write_json(directory / name, content)
    statistics = _table()["files"]["dataset_statistics.json"]
    _write_json(directory / "config.json", {**_table()["config"], "norm_stats": statistics})
    _write_json(directory / "tokenizer.json", tokenizer_json())
    tensors = bfloat16_tensors()
    shards: dict[str, dict[str, npt.NDArray[np.uint16]]] = {}
    for key, (shard, values) in tensors.items():
        shards.setdefault(shard, {})[key] = values
    for shard, content in shards.items():
        write_safetensors(directory / shard, content)
    index = {
        "metadata": {"total_size": sum(values.nbytes for _, values in tensors.values())},
        "weight_map": {key: shard for key, (shard, _) in sorted(tensors.items())},
    }
    _write_json(directory / "model.safetensors.index.json", index)
    return directory


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
