"""Which files of a folder win: what transformers' `from_pretrained` would have read there, in writing.

Order, read in transformers 4.40.1 (which OpenVLA pins) and 5.23: `model.safetensors`, its index, `pytorch_model.bin`,
its index. Knows file names and what they are for. Opens no weights, and leaves whose policy it is to `kinds`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_vla.errors import CheckpointError

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
CONFIG: Final = "config.json"
TOKENIZER: Final = "tokenizer.json"
STATISTICS: Final = "dataset_statistics.json"
ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = ("adapter_model.safetensors", "adapter_model.bin")
# Read where they are there; what holds without them is a default.
OPTIONAL: Final = (
    "added_tokens.json",
    CONFIG,
    STATISTICS,
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "quantize_config.json",
    "special_tokens_map.json",
    TOKENIZER,
    "tokenizer_config.json",
)
PICKLES: Final = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# transformers 5 reads these before all others: a folder of torch.distributed.checkpoint.
DISTRIBUTED: Final = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
SHARD: Final = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
VARIANT: Final = re.compile(r"model\.(?P<variant>[\w-]+?)(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
CONVERT: Final = "AutoModelForVision2Seq.from_pretrained(DIR, trust_remote_code=True).save_pretrained(OUT)"

# Why a file that lies beside the weights is not read; the first pattern that matches counts.
UNREAD: Final[Mapping[str, str]] = {
    r"pytorch_model.*\.bin(\.index\.json)?": "safetensors come first",
    r"(tf_model.*\.h5|flax_model.*\.msgpack)(\.index\.json)?": "another framework's weights",
    r".*\.gguf": "read only where gguf_file= names it",
    r"adapter_model\.(safetensors|bin)": f"an adapter is read only with its {ADAPTER_CONFIG}",
    r"tokenizer\.model": f"{TOKENIZER} holds the same tokenizer",
    r"(optimizer|scheduler|trainer_state|training_args|training_state|rng_state|scaler).*": "the training run's state",
    r".*\.py": "code is never run; copied by --format",
    r".*\.(safetensors|bin|pt|pth|ckpt)": "no index names it",
}


@dataclass(frozen=True)
class Use:
    """A file, and what it is read for or why it is not read."""

    name: str
    why: str


@dataclass(frozen=True)
class Weights:
    """The file that `from_pretrained` opens first: one with all tensors, or an index of shards."""

    path: Path
    why: str

    @property
    def sharded(self) -> bool:
        return self.path.name.endswith(".index.json")


def choose_weights(directory: Path) -> Weights:
    """What wins in `directory`; CheckpointError, with what to do, where nothing that wins can be read."""
    names = _names(directory)
    if parts := sorted(filter(DISTRIBUTED.fullmatch, names)):
        raise CheckpointError(
            f"{directory / parts[0]} is a shard of a distributed checkpoint, which is not read: "
            "save the model whole (`save_pretrained` without a distributed config)"
        )
    named = _named_by_config(directory)
    there = [name for name in (SINGLE, INDEX) if (directory / name).is_file()]
    if named is not None and there[:1] not in ([], [named]):
        raise CheckpointError(
            f"{directory / CONFIG} names the weights {named!r} (transformers_weights), older versions of transformers "
            f"read {there[0]}: remove one of them"
        )
    if named is not None and (directory / named).is_file():
        return Weights(directory / named, f"{CONFIG} names it (transformers_weights)")
    if not there:
        raise CheckpointError(_nothing(directory, names))
    stale = f"before {INDEX}, as transformers does" if len(there) == 2 else "all tensors"
    return Weights(directory / there[0], stale if there[0] == SINGLE else "which shard holds which tensor")


def check_links(directory: Path) -> None:
    """CheckpointError for a file that is read where it is there, and is a link to nothing, as in a copied Hub cache.

    transformers takes such a file for absent, and its default or the base's statistics in its place, without a word.
    """
    for name in (*OPTIONAL, ADAPTER_CONFIG, *ADAPTER_WEIGHTS):
        path = directory / name
        if path.is_symlink() and not path.exists():
            raise CheckpointError(
                f"{path} is a link to nothing ({path.readlink()}): download the directory again, or copy it with "
                "what its links point to (cp -rL)"
            )


def shard(index: Path, file: str) -> Path:
    """The shard that an index calls `file`, below the index's folder; CheckpointError for one outside."""
    path = Path(os.path.normpath(file))  # not resolved: in the Hub's cache every file is a link
    if path.is_absolute() or path.parts[:1] == ("..",):
        raise CheckpointError(f"{index} names {file!r}, which lies outside its folder: download it again")
    return index.parent / path


def unread(directory: Path, read: frozenset[str]) -> Iterator[Use]:
    """Files of the folder that are not read although their names say that they might be, and why."""
    for name in _names(directory):
        if name in read:
            continue
        if name == INDEX:
            yield Use(name, f"{SINGLE} comes first: this index is left over")
        elif SINGLE in read and SHARD.fullmatch(name):
            yield Use(name, f"{SINGLE} comes first: this shard is left over")
        elif match := VARIANT.fullmatch(name):
            yield Use(name, f"read only with variant={match['variant']!r}")
        else:
            why = next((why for pattern, why in UNREAD.items() if re.fullmatch(pattern, name)), None)
            if why is not None:
                yield Use(name, why)


def _nothing(directory: Path, names: tuple[str, ...]) -> str:
    """Why no weights can be read, and what to do."""
    expected = f"{directory / SINGLE} is missing: expected {INDEX} with its shards, or {SINGLE}"
    if broken := [name for name in (SINGLE, INDEX) if (directory / name).is_symlink()]:
        return f"{directory / broken[0]} is a link to nothing: download the directory again"
    if pickles := [name for name in PICKLES if name in names]:
        return f"{directory / pickles[0]}: pickled weights are not read: save them as safetensors ({CONVERT})"
    variants = [name for name in names if VARIANT.fullmatch(name) and "-of-" not in name]
    if variants:
        plain = INDEX if variants[0].endswith(".index.json") else SINGLE
        return f"{expected}; {variants[0]} is a variant: rename it to {plain}, or save the model again"
    return f"{expected}; download again"


def _named_by_config(directory: Path) -> str | None:
    """`transformers_weights` of config.json, which transformers 5 obeys; a name inside the folder."""
    try:
        named = json.loads((directory / CONFIG).read_text(encoding="utf-8")).get("transformers_weights")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None  # whoever reads the config says what is wrong with it
    return named if isinstance(named, str) and Path(named).name == named else None


def _names(directory: Path) -> tuple[str, ...]:
    """Files at the top of a folder, sorted. What lies deeper, transformers does not look at."""
    return tuple(sorted(path.name for path in directory.iterdir() if not path.is_dir()))
