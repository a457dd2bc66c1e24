"""The keys of an adapter's file: which are factors of which module, which replace a tensor, which copy the base's.

What peft itself would pass over without a word, because no module of the base has that name, is refused by its cause.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from edge_vla.checkpoint.keys import WRAPPERS
from edge_vla.errors import CheckpointError

PREFIX: Final = "base_model.model."
FACTORS: Final = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_embedding_A": "a",
    ".lora_embedding_B": "b",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector": "magnitude",
}
UNSAVED: Final = ".default."  # the adapter's name, which save_pretrained takes out


@dataclass(frozen=True)
class AdapterKeys:
    """Keys of the file: a module's factors by part, and tensors of the base by the name that they have there."""

    factors: Mapping[str, Mapping[str, str]]
    replacements: Mapping[str, str]
    base_copies: Mapping[str, str]


def sort_keys(keys: Iterable[str], origin: str) -> AdapterKeys:
    """CheckpointError for a key that is none of these."""
    factors: dict[str, dict[str, str]] = {}
    plain: dict[str, str] = {}
    copies: dict[str, str] = {}
    for key in keys:
        path = _path(key, origin)
        suffix = next((suffix for suffix in FACTORS if path.endswith(suffix)), None)
        if suffix is not None:
            factors.setdefault(path.removesuffix(suffix), {})[FACTORS[suffix]] = key
        elif path.endswith(".base_layer.weight"):
            copies[path.replace(".base_layer.", ".")] = key
        elif path.endswith((".weight", ".bias")) and ".lora_" not in path:
            plain[path.replace(".base_layer.", ".")] = key
        else:
            raise CheckpointError(f"{origin}: {key!r} is not a LoRA or DoRA tensor that is implemented")
    return AdapterKeys(factors, _as_loaded(plain, origin), copies)


def unknown_target(target: str, base: Collection[str]) -> str:
    """Why the base has no `target`: a name that a training framework changed, or another base."""
    bare = target
    for wrapper in WRAPPERS:
        bare = bare.replace(wrapper, "")
    if bare in base:
        return f"its keys were saved from a wrapped model (it has {bare}): save it again from the unwrapped one"
    return "an adapter for another base"


def _path(key: str, origin: str) -> str:
    if not key.startswith(PREFIX):
        raise CheckpointError(f"{origin}: unexpected key {key!r}: adapter keys start with {PREFIX!r}")
    if UNSAVED in key:
        raise CheckpointError(
            f"{origin}: {key!r} still has the adapter's name, and peft would not load it: save with save_pretrained"
        )
    if ".base_layer.weight." in key:
        raise CheckpointError(
            f"{origin}: {key!r} is part of a 4-bit copy of the base, which peft loads into a 4-bit base only: save "
            "again with save_embedding_layers=False"
        )
    return key.removeprefix(PREFIX)


def _as_loaded(plain: Mapping[str, str], origin: str) -> dict[str, str]:
    """Of a module to save that stands in the file three times, what peft loads: the plain name.

    With save_embedding_layers=True it is saved as trained under its plain name and under `modules_to_save`, and as it
    was under `original_module`.
    """
    loaded = {}
    for path, key in plain.items():
        trained = path.replace(".original_module.", ".").replace(".modules_to_save.", ".")
        if trained == path:
            loaded[path] = key
        elif trained not in plain:
            raise CheckpointError(f"{origin}: {key!r} stands without {PREFIX}{trained}: save the adapter again")
    return loaded
