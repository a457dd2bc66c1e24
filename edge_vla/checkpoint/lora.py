"""LoRA adapters, read without peft and merged one tensor at a time.

Implements LoRA, rank-stabilised LoRA and DoRA on linears, convolutions and embeddings, rank and alpha patterns,
fan-in-fan-out, trained biases and `modules_to_save`. An adapter that carries anything else is refused by name.

Where an adapter carries a copy of its base's tensor, that copy is merged into, as in peft.
Two arithmetics. "fp32" adds in float32 and rounds once (what peft computes since 0.12, but for convolutions and
embeddings, where some versions round twice). "upstream" is peft 0.11.1 on the base's own type, which is how OpenVLA's
fine-tuning script merged the checkpoints people run.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, KeysView, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_vla.checkpoint.base_copy import difference
from edge_vla.checkpoint.lora_config import Arithmetic, Scale, read_config
from edge_vla.checkpoint.lora_keys import sort_keys, unknown_target
from edge_vla.checkpoint.tensors import TensorSource, finite, open_safetensors
from edge_vla.errors import CheckpointError, EdgeVLAWarning, UsageError
from edge_vla.suggestions import choose

WEIGHTS: Final = "adapter_model.safetensors"
PICKLED: Final = "adapter_model.bin"
CONVERT: Final = (
    'python -c "import torch, safetensors.torch as s; '
    f"s.save_file(torch.load('{PICKLED}', weights_only=True), '{WEIGHTS}')\""
)
EMPTY: Final = "saved under DeepSpeed ZeRO-3? gather the weights when you save"


@dataclass(frozen=True)
class Update:
    """The adapter tensors of one module, by file key."""

    module: str
    scale: Scale
    keys: Mapping[str, str]
    embedding: bool

    @property
    def target(self) -> str:
        return self.module + ".weight"


class Adapter:
    """One adapter directory: its updates by target tensor, plain replacements, and copies of its base's tensors."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = read_config(directory)
        self.path = directory / WEIGHTS
        if not self.path.is_file() and (directory / PICKLED).is_file():
            raise CheckpointError(f"{directory} holds {PICKLED}, which is not read: there, run {CONVERT}")
        if not self.path.is_file():
            parts = sorted(path.name for path in directory.glob("adapter_model*-of-*.safetensors"))
            whole = f", whole: {parts[0]} is a part; save it again with a larger max_shard_size" if parts else ""
            raise CheckpointError(f"{self.path} is missing: expected a peft adapter saved as safetensors{whole}")
        with open_safetensors(self.path) as file:
            self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        keys = sort_keys(self.shapes, str(self.path))
        self.replacements, self.base_copies = keys.replacements, keys.base_copies
        self.updates = {update.target: update for update in (self._update(*item) for item in keys.factors.items())}
        if not self.updates and not self.replacements:
            raise CheckpointError(f"{self.path} holds no adapter tensors: expected lora_A and lora_B; save it again")

    def __str__(self) -> str:
        return str(self.directory)

    def load(self, key: str) -> Tensor:
        return finite(self._stored(key), f"{self.path}: {key}")

    def check(self, base: TensorSource) -> None:
        """Raise CheckpointError unless every tensor of the adapter belongs to `base`."""
        for target in [*self.updates, *self.replacements, *self.base_copies]:
            if target not in base.names():
                why = unknown_target(target, base.names())
                raise CheckpointError(f"{self} adapts {target}, which {base} does not have: {why}")
        for target, update in self.updates.items():
            self._check_update(update, base.shape(target))
        for target, key in {**self.replacements, **self.base_copies}.items():
            if self.shapes[key] != base.shape(target):
                empty = f"; {EMPTY}" if 0 in self.shapes[key] else ""
                raise CheckpointError(
                    f"{self}: {key} is {self.shapes[key]}, the base's {target} is {base.shape(target)}{empty}"
                )
        for target, key in self.base_copies.items():
            self._check_copy(key, target, base)

    def doubts(self, arithmetic: Arithmetic) -> Iterator[str]:
        """What a careful user would want to know before merging it so, a line each."""
        if self.config.unknown:
            yield (
                f"{self} sets {', '.join(self.config.unknown)}, which peft up to 0.21 does not have: if it changes the "
                "merged weights, merge with peft first"
            )
        unloaded = [one.module for one in self.updates.values() if not self.config.loaded_by_peft(one.module)]
        if unloaded:
            yield (
                f"{self} merges {len(unloaded)} modules, first {unloaded[0]}, that its target_modules do not name: "
                "peft would leave them out"
            )
        yield from self._untrained()
        hidden = sum(update.scale.old != update.scale.new for update in self.updates.values())
        if hidden and not self.config.new_search:
            yield (
                f"{self}: a rank pattern hides the alpha pattern of {hidden} modules in peft up to 0.13, which saved "
                "it: merged as it was trained, while peft since 0.14 merges it otherwise"
            )
        elif hidden and arithmetic == "upstream":
            yield (
                f"{self}: a rank pattern hides the alpha pattern of {hidden} modules in peft 0.11.1, but not in the "
                "later one that saved it: as it was trained is --merge-arithmetic fp32"
            )
        if (self.config.bias or "none") != "none" and not any(name.endswith(".bias") for name in self.replacements):
            yield (
                f"{self} trained biases (bias={self.config.bias!r}) and holds none: peft before 0.21 lost them when "
                "it saved; the base's stay"
            )

    def gaps(self, base: TensorSource, dead: Collection[str] = ()) -> Iterator[str]:
        """What the adapter's options name in `base` and its file lacks, so that the base's own is kept.

        `dead` tensors take part in no action: nobody misses them.
        """
        names = sorted(base.names() - set(dead))
        modules = [name.removesuffix(".weight") for name in names if len(base.shape(name)) > 1]
        bare = [one for one in modules if f"{one}.weight" not in self.updates and self.config.given_by_peft(one)]
        if bare:
            yield (
                f"{self} has no factors for {len(bare)} modules that its target_modules name, first {bare[0]}: they "
                "stay the base's, as in peft; if they were trained, it was not saved whole"
            )
        saved = self.config.modules_to_save
        for name in saved if isinstance(saved, list) else ():
            if not any(re.fullmatch(rf"(.*\.)?{re.escape(str(name))}\..*", one) for one in self.replacements):
                yield f"{self} names {name} in modules_to_save and holds none of it: the base's stays"

    def _untrained(self) -> Iterator[str]:
        """One line if every product of factors is zero. Of a trained adapter it reads the first pair alone."""
        pairs = ([self._stored(update.keys[part]) for part in ("b", "a")] for update in self.updates.values())
        if self.updates and not self.replacements and not any(b.any() and a.any() for b, a in pairs):
            yield (
                f"{self} changes nothing, because every lora_B is zero, as before training: was it saved without its "
                "trained numbers (DeepSpeed, FSDP)?"
            )

    def merge(self, name: str, weight: Tensor, arithmetic: Arithmetic) -> Tensor:
        """`weight`, the tensor called `name`, with this adapter in it, in the type it came in."""
        if name in self.replacements:
            return self.load(self.replacements[name]).to(weight.dtype)
        if name in self.base_copies:  # as peft loads it: rounded, where it was
            weight = self.load(self.base_copies[name]).to(weight.dtype)
        update = self.updates.get(name)
        if update is None:
            return weight
        factors = {part: self.load(key) for part, key in update.keys.items()}
        transposed = self._transposed(update, tuple(weight.shape))
        new = arithmetic == "fp32" and self.config.new_search
        scale = update.scale.new if new else update.scale.old
        merged = _merge(weight, factors, scale, transposed, arithmetic)
        return finite(merged, f"{name} merged with {self}")

    def _stored(self, key: str) -> Tensor:
        with open_safetensors(self.path) as file:
            tensor: Tensor = file.get_tensor(key).clone()
        return tensor

    def _check_update(self, update: Update, shape: tuple[int, ...]) -> None:
        n, k = self._span(update)
        kernel = self.shapes[update.keys["a"]][2:]
        if shape != (*((k, n) if self._transposed(update, shape) else (n, k)), *kernel):
            raise CheckpointError(f"{self}: {update.module} is {n} x {k}, the base's is {shape}: another base")
        magnitude = self.shapes[update.keys["magnitude"]] if "magnitude" in update.keys else (n,)
        if math.prod(magnitude) != n:
            raise CheckpointError(f"{self}: {update.module} has {n} outputs, its magnitude {magnitude}")

    def _check_copy(self, key: str, target: str, base: TensorSource) -> None:
        copy = self._stored(key)
        if apart := difference(copy, base.load(target)):
            raise CheckpointError(
                f"{self} carries a copy of {target} that differs from {base}'s: {apart}: another base; give "
                "the one that it was trained on"
            )
        if infinite := int((~torch.isfinite(copy)).sum()):
            raise CheckpointError(
                f"{self}: {infinite} values of the base's {target} overflowed in the copy that it carries, of type "
                f"{copy.dtype}, and peft would merge infinities: train in bfloat16, or save without embedding layers"
            )

    def _update(self, module: str, keys: Mapping[str, str]) -> Update:
        if not {"a", "b"} <= set(keys):
            raise CheckpointError(f"{self.path}: {module} has {sorted(keys)}, expected both lora_A and lora_B")
        if bool(self.config.use_dora) != ("magnitude" in keys):
            raise CheckpointError(f"{self.path}: {module}: use_dora is {self.config.use_dora}, tensors {sorted(keys)}")
        a, b = self.shapes[keys["a"]], self.shapes[keys["b"]]
        rank = a[0] if a else 0
        if len(a) < 2 or b[1:] != (rank, *[1] * (len(a) - 2)) or not rank:
            empty = f"; {EMPTY}" if 0 in (*a, *b) else ""
            raise CheckpointError(
                f"{self.path}: {module} has lora_A {a} and lora_B {b}: expected (r, in) and (out, r){empty}"
            )
        try:
            scale = self.config.scale(module, rank)
        except CheckpointError as error:
            raise CheckpointError(f"{self}: {error}") from error
        return Update(module, scale, keys, embedding="lora_embedding" in keys["a"])

    def _transposed(self, update: Update, shape: tuple[int, ...]) -> bool:
        """Whether the base stores (in, out). As in peft, fan_in_fan_out means nothing on a linear that does not."""
        return update.embedding or (bool(self.config.fan_in_fan_out) and shape != self._span(update))

    def _span(self, update: Update) -> tuple[int, int]:
        return self.shapes[update.keys["b"]][0], self.shapes[update.keys["a"]][1]


class MergedTensors:
    """A source with one adapter merged into each tensor as it is read."""

    def __init__(self, base: TensorSource, adapter: Adapter, arithmetic: Arithmetic) -> None:
        adapter.check(base)
        for doubt in adapter.doubts(arithmetic):
            warnings.warn(doubt, EdgeVLAWarning, 4)
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
        raise UsageError(f"merge arithmetic {arithmetic!r}: {choose(arithmetic, get_args(Arithmetic))}")
    for adapter in adapters:
        base = MergedTensors(base, adapter, arithmetic)
    return base


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
    # peft 0.11.1 gives the adapter the base's type when it loads it, then works in that type throughout; but on a CPU
    # it multiplies float16 factors in float32.
    dtype = torch.float32 if arithmetic == "fp32" else weight.dtype
    a, b = (factors[part].to(dtype) for part in ("a", "b"))
    if dtype == torch.float16:
        a, b = a.float(), b.float()
    summed = weight.to(dtype) + _delta(a, b, scale, transposed).to(dtype)
    if "magnitude" in factors:
        summed = _with_magnitude(summed, factors["magnitude"].to(dtype), transposed)
    return summed.to(weight.dtype)
