"""LoRA adapters, read without peft and merged one tensor at a time.

Implements LoRA, rank-stabilised LoRA and DoRA on linears, convolutions and embeddings, rank and alpha patterns,
fan-in-fan-out, trained biases and `modules_to_save`. An adapter that carries anything else is refused by name.

Two arithmetics. "fp32" adds in float32 and rounds once (what peft computes for a float32 base). "upstream" is
peft 0.11.1 on the base's own type, which is how OpenVLA's fine-tuning script merged the checkpoints people run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, KeysView, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla import typed_json
from edge_vla.checkpoint.tensors import TensorSource, finite, open_safetensors
from edge_vla.errors import CheckpointError, UsageError
from edge_vla.openvla.config import read_json

Arithmetic = Literal["fp32", "upstream"]
PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"
FACTORS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_embedding_A": "a",
    ".lora_embedding_B": "b",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector": "magnitude",
}
# Options that change the merged weights in a way not implemented here. (Of the other initialisations a trained
# adapter keeps no trace; these also changed the base's weights, which the adapter does not carry.)
REFUSED_INITIALISATIONS = ("pissa", "corda", "olora", "loftq", "lora_ga")
REFUSED = (
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
    init_lora_weights: object = None


@dataclass(frozen=True)
class Update:
    """The adapter tensors of one module, by file key."""

    module: str
    scale: Mapping[Arithmetic, float]
    keys: Mapping[str, str]
    embedding: bool

    @property
    def target(self) -> str:
        return self.module + ".weight"


class Adapter:
    """One adapter directory: its updates by target tensor, and plain replacements."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = self._read_config(directory / "adapter_config.json")
        self.path = directory / WEIGHTS
        if not self.path.is_file():
            raise CheckpointError(f"{self.path} is missing: expected a peft adapter saved as safetensors")
        self.transposed = bool(self.config.fan_in_fan_out)
        with open_safetensors(self.path) as file:
            self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        modules: dict[str, dict[str, str]] = {}
        self.replacements: dict[str, str] = {}
        self.base_copies: dict[str, str] = {}
        for key in self.shapes:
            self._sort(key, modules)
        self.updates = {update.target: update for update in (self._update(*item) for item in modules.items())}
        if not self.updates and not self.replacements:
            raise CheckpointError(f"{self.path} holds no adapter tensors: expected lora_A and lora_B; save it again")

    def __str__(self) -> str:
        return str(self.directory)

    def load(self, key: str) -> Tensor:
        with open_safetensors(self.path) as file:
            return finite(file.get_tensor(key).clone(), f"{self.path}: {key}")

    def check(self, base: TensorSource) -> None:
        """Raise CheckpointError unless every tensor of the adapter belongs to `base`."""
        for target in [*self.updates, *self.replacements, *self.base_copies]:
            if target not in base.names():
                raise CheckpointError(
                    f"{self} adapts {target}, which {base} does not have: an adapter for another base"
                )
        for target, update in self.updates.items():
            shape, (n, k) = base.shape(target), self._span(update)
            kernel = self.shapes[update.keys["a"]][2:]
            if shape != (*((k, n) if self.transposed or update.embedding else (n, k)), *kernel):
                raise CheckpointError(f"{self}: {update.module} is {n} x {k}, the base's is {shape}: another base")
            magnitude = self.shapes[update.keys["magnitude"]] if "magnitude" in update.keys else (n,)
            if math.prod(magnitude) != n:
                raise CheckpointError(f"{self}: {update.module} has {n} outputs, its magnitude {magnitude}")
        for target, key in self.replacements.items():
            if self.shapes[key] != base.shape(target):
                raise CheckpointError(
                    f"{self}: {key} is {self.shapes[key]}, the base's {target} is {base.shape(target)}"
                )
        for target, key in self.base_copies.items():
            if self.shapes[key] != base.shape(target) or not torch.equal(self.load(key), base.load(target)):
                raise CheckpointError(
                    f"{self} carries a copy of {target} that differs from {base}'s: it was trained on another base"
                )

    def merge(self, name: str, weight: Tensor, arithmetic: Arithmetic) -> Tensor:
        """`weight`, the tensor called `name`, with this adapter in it, in the type it came in."""
        if name in self.replacements:
            return self.load(self.replacements[name]).to(weight.dtype)
        update = self.updates.get(name)
        if update is None:
            return weight
        factors = {part: self.load(key) for part, key in update.keys.items()}
        transposed = self.transposed or update.embedding
        merged = _merge(weight, factors, update.scale[arithmetic], transposed, arithmetic)
        return finite(merged, f"{name} merged with {self}")

    def _read_config(self, path: Path) -> AdapterConfig:
        """CheckpointError for an option that would change the merged weights in a way not implemented here."""
        raw = read_json(path)
        try:
            config = typed_json.from_json(AdapterConfig, raw, path.name, ignore_unknown=True)
            _check_patterns("rank_pattern", config.rank_pattern)
            _check_patterns("alpha_pattern", config.alpha_pattern)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}: save the adapter again") from error
        if config.peft_type != "LORA":
            raise CheckpointError(f"{self}: peft_type {config.peft_type!r}; only LORA adapters are merged")
        carried, start = [option for option in REFUSED if raw.get(option)], config.init_lora_weights
        if isinstance(start, str) and start.lower().startswith(REFUSED_INITIALISATIONS):
            carried.append(f"init_lora_weights {start!r}")
        if carried:
            raise CheckpointError(
                f"{self} uses {', '.join(carried)}, which is not implemented: merge it with peft first"
            )
        return config

    def _sort(self, key: str, modules: dict[str, dict[str, str]]) -> None:
        if not key.startswith(PREFIX):
            raise CheckpointError(f"{self.path}: unexpected key {key!r}: adapter keys start with {PREFIX!r}")
        path = key.removeprefix(PREFIX)
        for suffix, part in FACTORS.items():
            if path.endswith(suffix):
                modules.setdefault(path.removesuffix(suffix), {})[part] = key
                return
        if path.endswith(".base_layer.weight"):
            self.base_copies[path.replace(".base_layer.", ".")] = key
        elif path.endswith(".base_layer.bias"):
            self.replacements[path.replace(".base_layer.", ".")] = key
        elif path.endswith((".weight", ".bias")) and ".lora_" not in path:
            self.replacements[path] = key
        else:
            raise CheckpointError(f"{self.path}: {key!r} is not a LoRA or DoRA tensor that is implemented")

    def _update(self, module: str, keys: Mapping[str, str]) -> Update:
        if not {"a", "b"} <= set(keys):
            raise CheckpointError(f"{self.path}: {module} has {sorted(keys)}, expected both lora_A and lora_B")
        if bool(self.config.use_dora) != ("magnitude" in keys):
            raise CheckpointError(f"{self.path}: {module}: use_dora is {self.config.use_dora}, tensors {sorted(keys)}")
        a, b = self.shapes[keys["a"]], self.shapes[keys["b"]]
        rank = a[0] if a else 0
        if len(a) < 2 or b[1:] != (rank, *[1] * (len(a) - 2)) or not rank:
            raise CheckpointError(f"{self.path}: {module} has lora_A {a} and lora_B {b}: expected (r, in) and (out, r)")
        divisor = math.sqrt(rank) if self.config.use_rslora else rank
        alphas, ranks = self.config.alpha_pattern or {}, self.config.rank_pattern or {}
        scale: dict[Arithmetic, float] = {
            "fp32": self._alpha(_search(alphas, module)) / divisor,
            "upstream": self._alpha(_search([*ranks, *alphas], module)) / divisor,
        }
        return Update(module, scale, keys, embedding="lora_embedding" in keys["a"])

    def _alpha(self, pattern: str) -> float:
        """The alpha of a module whose name matched `pattern`."""
        alpha = (self.config.alpha_pattern or {}).get(pattern, self.config.lora_alpha)
        if alpha is None or not math.isfinite(alpha):
            raise CheckpointError(f"{self}: lora_alpha is {alpha}, expected a finite number: save the adapter again")
        return alpha

    def _span(self, update: Update) -> tuple[int, int]:
        return self.shapes[update.keys["b"]][0], self.shapes[update.keys["a"]][1]


class MergedTensors:
    """A source with one adapter merged into each tensor as it is read."""

    def __init__(self, base: TensorSource, adapter: Adapter, arithmetic: Arithmetic) -> None:
        adapter.check(base)
        self.base, self.adapter, self.arithmetic = base, adapter, arithmetic

    def __str__(self) -> str:
        return f"{self.base} + {self.adapter}"

    def names(self) -> KeysView[str]:
        return self.base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.base.shape(name)

    def load(self, name: str) -> Tensor:
        return self.adapter.merge(name, self.base.load(name), self.arithmetic)


def merge_adapters(base: TensorSource, adapters: Iterable[Adapter], arithmetic: Arithmetic = "fp32") -> TensorSource:
    """`base` with the adapters merged in order, each checked against what came before it."""
    if arithmetic not in get_args(Arithmetic):
        raise UsageError(f"merge arithmetic {arithmetic!r}: choose one of {get_args(Arithmetic)}")
    for adapter in adapters:
        base = MergedTensors(base, adapter, arithmetic)
    return base


def _check_patterns(name: str, patterns: Mapping[str, object] | None) -> None:
    for pattern in patterns or ():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{name}: {pattern!r} is not a regular expression ({error})") from error


def _search(patterns: Iterable[str], module: str) -> str:
    """The first pattern that matches the end of the module's path, else the path itself.

    Today's peft searches the alpha patterns alone. peft 0.11.1 made one search through rank and alpha patterns
    and looked the same key up in both, so a rank pattern can hide an alpha pattern there.
    """
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), module)


def _delta(a: Tensor, b: Tensor, scale: float, transposed: bool) -> Tensor:
    """B A times the scale, in the factors' type. Convolutions: a (r, in, h, w), b (out, r, 1, 1)."""
    if a.dim() == 4 and a.shape[2:] == (1, 1):
        return (b[:, :, 0, 0] @ a[:, :, 0, 0])[:, :, None, None] * scale
    if a.dim() == 4:
        return F.conv2d(a.transpose(0, 1), b).transpose(0, 1) * scale
    product = b @ a
    return (product.T if transposed else product) * scale


def _with_magnitude(summed: Tensor, magnitude: Tensor, transposed: bool) -> Tensor:
    """DoRA: each output's direction from the summed weight, its length from the magnitude."""
    rows = summed.T if transposed else summed
    norm = torch.linalg.norm(rows.flatten(1), dim=1).to(rows.dtype)
    factor = (magnitude.flatten() / norm).view(-1, *[1] * (rows.dim() - 1))
    scaled: Tensor = (factor.T if transposed else factor) * summed
    return scaled


def _merge(
    weight: Tensor, factors: Mapping[str, Tensor], scale: float, transposed: bool, arithmetic: Arithmetic
) -> Tensor:
    # peft 0.11.1 gives the adapter the base's type when it loads it, then works in that type throughout.
    dtype = torch.float32 if arithmetic == "fp32" else weight.dtype
    summed = weight.to(dtype) + _delta(factors["a"].to(dtype), factors["b"].to(dtype), scale, transposed).to(dtype)
    if "magnitude" in factors:
        summed = _with_magnitude(summed, factors["magnitude"].to(dtype), transposed)
    return summed.to(weight.dtype)
