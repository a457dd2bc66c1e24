"""Cut a full reference run of OpenVLA to `openvla_tiny.npz` and `openvla_tiny.json`.

The run itself: the original OpenVLA Hugging Face code, transformers 4.40.1, timm 0.9.10, torch 2.2.0, CPU, float32,
SDPA, on a random-weight checkpoint of small widths (seven action tokens for each of three image-and-instruction
cases). It left a folder with the checkpoint `openvla-tiny/` and `openvla-tiny-fp32.{npz,json}`; this script cuts
that folder and ran with Python 3.11, numpy 2.4.6, tokenizers 0.23.2:

    python -m tests.golden.make_openvla_tiny FOLDER
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from .storage import write_npz

FOLDER: Final = Path(__file__).parent
ACTION_IDS: Final = range(31744, 32000)
SPECIAL_IDS: Final = (0, 1, 2, 29871, 32000)
NEAR_WINNERS: Final = 8
PATCH_ROWS: Final = (0, 1, 37, 100, 135, 201, 255)
HIDDEN_ROWS: Final = (-1, -2, -12, -100, -250)
BYTE_FIRST: Final = 3
EMBEDDING: Final = "language_model.model.embed_tokens.weight"
HEAD: Final = "language_model.lm_head.weight"
V01: Final = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    "USER: What action should the robot take to put spoon on towel? ASSISTANT:"
)
EMPTY: Final = "In: What action should the robot take to ?\nOut:"

Array = npt.NDArray[Any]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_safetensors(path: Path) -> dict[str, npt.NDArray[np.uint16]]:
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header: dict[str, Any] = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__")
    tensors = {}
    for key, entry in header.items():
        assert entry["dtype"] == "BF16", f"{key} is {entry['dtype']}, expected BF16"
        start, end = entry["data_offsets"]
        tensors[key] = np.frombuffer(raw[8 + size + start : 8 + size + end], "<u2").reshape(entry["shape"])
    return tensors


def without_proprio(statistics: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {key: value for key, value in entry.items() if key != "proprio"} for name, entry in statistics.items()
    }


def cut_case(name: str, full: dict[str, Array], row: dict[str, Any], head_ids: Array) -> dict[str, Any]:
    """Return the case's table row; its arrays are added by `case_arrays`."""
    pixels = full["pixel_values"]
    winners = full["logits"].argmax(axis=1)
    assert winners.tolist() == row["token_ids"] == full["token_ids"].tolist()
    zeroed = np.zeros_like(full["logits"])
    zeroed[:, head_ids] = full["logits"][:, head_ids]
    assert zeroed.argmax(axis=1).tolist() == row["token_ids"], "zero rows of the head would win a step"
    assert row["prompt_ids"] == full["prompt_ids"].tolist()
    return {
        "name": name,
        "instruction": row["instruction"],
        "unnorm_key": row["unnorm_key"],
        "prompt": row["prompt"],
        "prompt_ids": row["prompt_ids"],
        "pixel_values_shape": list(pixels.shape),
        "pixel_values_sha256": hashlib.sha256(np.ascontiguousarray(pixels, "<f4").tobytes()).hexdigest(),
        "patch_rows": list(PATCH_ROWS),
        "hidden_rows": list(HIDDEN_ROWS),
        "prefill_length": len(full["prefill_hidden"]),
        "token_ids": row["token_ids"],
    }


def case_arrays(name: str, full: dict[str, Array], head_ids: Array) -> dict[str, Array]:
    top2 = -np.sort(-full["logits"], axis=1)[:, :2]
    return {
        f"{name}/image": full["image"],
        f"{name}/pixel_values_sample": full["pixel_values"][:, ::32, ::32],
        f"{name}/patches": full["patches"][list(PATCH_ROWS)],
        f"{name}/projected": full["projected"][list(PATCH_ROWS)],
        f"{name}/prefill_hidden": full["prefill_hidden"][list(HIDDEN_ROWS)],
        f"{name}/logits": full["logits"][:, head_ids],
        f"{name}/top2_margin": top2[:, 0] - top2[:, 1],
        f"{name}/normalized": full["normalized"],
        f"{name}/action": full["action"],
    }


def cut_tokenizer(path: Path, prompts: list[str]) -> tuple[dict[str, Any], list[list[int]]]:
    """Keep the pieces that the prompts' ids name; return the table and the ids of each prompt."""
    whole = read_json(path)
    vocabulary: list[list[Any]] = whole["model"].pop("vocab")
    tokenizer = Tokenizer.from_file(str(path))
    ids = [list(tokenizer.encode(prompt).ids) for prompt in prompts]
    used = set().union(*ids, [index for index in SPECIAL_IDS if index < len(vocabulary)])
    byte_score = vocabulary[BYTE_FIRST][1]
    model = whole.pop("model")
    pieces = [[index, *vocabulary[index]] for index in sorted(used)]
    table = {
        "size": len(vocabulary),
        "first_byte": BYTE_FIRST,
        "byte_score": byte_score,
        "pieces": pieces,
        "model": model,
        "rest": whole,
    }
    return table, ids


def main(source: Path) -> None:
    checkpoint = source / "openvla-tiny"
    run = read_json(source / "openvla-tiny-fp32.json")
    with np.load(source / "openvla-tiny-fp32.npz") as stored:
        full = [
            {name.split("/")[1]: stored[name] for name in stored.files if name.startswith(f"{number}/")}
            for number in range(len(run["cases"]))
        ]

    prompts = [row["prompt"] for row in run["cases"]]
    tokenizer, prompt_ids = cut_tokenizer(checkpoint / "tokenizer.json", [*prompts, V01, EMPTY])
    for ids, row in zip(prompt_ids, run["cases"], strict=False):
        assert [*ids, 29871] == row["prompt_ids"], row["prompt"]

    near = {int(index) for case in full for index in np.argsort(-case["logits"], axis=1)[:, :NEAR_WINNERS].flat}
    head_ids = np.array(sorted({*ACTION_IDS, *near}), np.uint16)
    embedding_ids = np.array(sorted({*ACTION_IDS, *SPECIAL_IDS, *(i for ids in prompt_ids for i in ids)}), np.uint16)
    rows = {EMBEDDING: "embed_tokens_ids", HEAD: "lm_head_ids"}
    kept = {EMBEDDING: embedding_ids, HEAD: head_ids}

    weight_map: dict[str, str] = read_json(checkpoint / "model.safetensors.index.json")["weight_map"]
    tensors: list[dict[str, Any]] = []
    flat: list[Array] = []
    for shard in sorted(set(weight_map.values())):
        for key, values in read_safetensors(checkpoint / shard).items():
            assert weight_map[key] == shard, key
            tensors.append({"key": key, "shape": list(values.shape), "shard": shard, "rows": rows.get(key)})
            flat.append((values[kept[key]] if key in kept else values).ravel())
    weights = np.concatenate(flat)

    arrays: dict[str, Array] = {
        "weights_high": (weights >> 8).astype(np.uint8),
        "weights_low": (weights & 0xFF).astype(np.uint8),
        "embed_tokens_ids": embedding_ids,
        "lm_head_ids": head_ids,
    }
    table_cases = []
    for number, (case, row) in enumerate(zip(full, run["cases"], strict=True)):
        table_cases.append(cut_case(str(number), case, row, head_ids))
        arrays |= case_arrays(str(number), case, head_ids)

    config = read_json(checkpoint / "config.json")
    statistics = read_json(checkpoint / "dataset_statistics.json")
    assert config.pop("norm_stats") == statistics, "config.json and dataset_statistics.json disagree"
    names = ("generation_config.json", "preprocessor_config.json", "tokenizer_config.json")
    table = {
        "made_by": run["made_by"],
        "cases": table_cases,
        "prompts": [
            {"text": text, "ids": ids} for text, ids in zip((V01, EMPTY), prompt_ids[len(prompts) :], strict=True)
        ],
        "config": config,
        "files": {
            "dataset_statistics.json": without_proprio(statistics),
            **{name: read_json(checkpoint / name) for name in names},
        },
        "tokenizer": tokenizer,
        "tensors": tensors,
    }
    write_npz(FOLDER / "openvla_tiny.npz", arrays)
    text = json.dumps(table, ensure_ascii=False, indent=1) + "\n"
    (FOLDER / "openvla_tiny.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
