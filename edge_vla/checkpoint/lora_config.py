"""adapter_config.json: which options are read, which change the weights in a way not implemented here, and the scales.

Knows no tensors.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from edge_vla import typed_json
from edge_vla.errors import CheckpointError
from edge_vla.openvla.config import read_json

Arithmetic = Literal["fp32", "upstream"]
# Options that change the merged weights in a way not implemented here. (Of the other initialisations a trained
# adapter keeps no trace; these also changed the base's weights, which the adapter does not carry.)
REFUSED_INITIALISATIONS: Final = ("pissa", "corda", "olora", "loftq", "lora_ga")
REFUSED: Final = (
    "arrow_config",
    "alora_invocation_tokens",
    "lora_bias",
    "layer_replication",
    "kasa_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
# They say what was trained and how; the tensors of the file show what came of it.
HARMLESS: Final = (
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "runtime_config",
    "task_type",
)
ALL_LINEAR: Final = "all-linear"
NEW_SEARCH: Final = "exclude_modules"  # peft has this option, and the new search, since 0.14


@dataclass(frozen=True)
class Scale:
    """What B A of a module is multiplied by: as peft up to 0.13 finds it, and as it does since 0.14."""

    old: float
    new: float


@dataclass(frozen=True)
class AdapterConfig:
    """What is read of adapter_config.json, besides the options that are refused."""

    peft_type: str | None = None
    lora_alpha: float | None = None
    alpha_pattern: dict[str, float] | None = None
    rank_pattern: dict[str, object] | None = None
    fan_in_fan_out: bool | None = None
    use_dora: bool | None = None
    use_rslora: bool | None = None
    bias: str | None = None
    init_lora_weights: object = None
    target_modules: object = None
    modules_to_save: object = None
    exclude_modules: object = None
    layers_pattern: object = None
    layers_to_transform: object = None
    base_model_name_or_path: object = None
    new_search: bool = False  # whether the peft that saved it searched patterns as since 0.14; not from the file
    unknown: tuple[str, ...] = ()  # options that are set and that no peft up to 0.21 has; not from the file

    def scale(self, module: str, rank: int) -> Scale:
        divisor = math.sqrt(rank) if self.use_rslora else rank
        alphas, ranks = self.alpha_pattern or {}, self.rank_pattern or {}
        old, new = _search([*ranks, *alphas], module), _search(alphas, module)
        return Scale(self._alpha(old) / divisor, self._alpha(new) / divisor)

    def loaded_by_peft(self, module: str) -> bool:
        """Whether peft gives the module a place for its factors: by the end of its path, or by a pattern for all of it.

        Layers that other options leave out are not looked at.
        """
        targets = self.target_modules
        if isinstance(targets, list) and targets:
            return any(module == target or module.endswith(f".{target}") for target in targets)
        if isinstance(targets, str) and targets != ALL_LINEAR:
            return re.fullmatch(targets, module) is not None
        return True

    def given_by_peft(self, module: str) -> bool:
        """Whether peft certainly gave the module factors: a list names it, and no other option leaves layers out."""
        narrowed = self.exclude_modules or self.layers_pattern or self.layers_to_transform is not None
        return not narrowed and isinstance(self.target_modules, list) and self.loaded_by_peft(module)

    def _alpha(self, pattern: str) -> float:
        """The alpha of a module whose name matched `pattern`."""
        alpha = (self.alpha_pattern or {}).get(pattern, self.lora_alpha)
        if alpha is None or not math.isfinite(alpha):
            raise CheckpointError(f"lora_alpha is {alpha}, expected a finite number: save the adapter again")
        return alpha


def read_config(directory: Path) -> AdapterConfig:
    """CheckpointError for an option that would change the merged weights in a way not implemented here."""
    path = directory / "adapter_config.json"
    if not path.exists() and not path.is_symlink():
        raise CheckpointError(_no_adapter(directory))
    raw = read_json(path)
    try:
        config = typed_json.from_json(AdapterConfig, raw, path.name, ignore_unknown=True)
        _check_patterns("rank_pattern", config.rank_pattern)
        _check_patterns("alpha_pattern", config.alpha_pattern)
        if isinstance(config.target_modules, str):
            _check_patterns("target_modules", {config.target_modules: None})
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}: save the adapter again") from error
    if config.peft_type != "LORA":
        raise CheckpointError(f"{directory}: peft_type {config.peft_type!r}; only LORA adapters are merged")
    carried, start = [option for option in REFUSED if raw.get(option)], config.init_lora_weights
    if isinstance(start, str) and start.lower().startswith(REFUSED_INITIALISATIONS):
        carried.append(f"init_lora_weights {start!r}")
    if carried:
        raise CheckpointError(
            f"{directory} uses {', '.join(carried)}, which is not implemented: merge it with peft first"
        )
    known = {*HARMLESS, *(field.name for field in dataclasses.fields(AdapterConfig))}
    unknown = tuple(sorted(option for option, value in raw.items() if value and option not in known))
    return dataclasses.replace(config, new_search=NEW_SEARCH in raw, unknown=unknown)


def _no_adapter(directory: Path) -> str:
    """What a directory without adapter_config.json may be, and what to give in its place."""
    missing = f"{directory / 'adapter_config.json'} is missing: expected a peft adapter there"
    inside = sorted(found.parent for found in directory.glob("*/adapter_config.json"))
    if inside:
        return f"{missing}; give {' or '.join(map(str, inside[:4]))}"
    if (directory / "config.json").exists():
        return f"{missing}, and this is a whole checkpoint: give it as SRC, without --adapter"
    return missing


def _check_patterns(name: str, patterns: Mapping[str, object] | None) -> None:
    for pattern in patterns or ():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{name}: {pattern!r} is not a regular expression ({error})") from error


def _search(patterns: Iterable[str], module: str) -> str:
    """The first pattern that matches the end of the module's path, else the path itself.

    Since 0.14 peft searches the alpha patterns alone. Up to 0.13 it made one search through rank and alpha patterns
    and looked the same key up in both, so a rank pattern can hide an alpha pattern there.
    """
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), module)
