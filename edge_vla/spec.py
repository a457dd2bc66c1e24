"""Every dimension of the network, once.

Knows shapes and the architectures that OpenVLA's authors used by name. Knows nothing of files or tensors:
`openvla.config` fills these from a checkpoint's config.json, everything else reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final


def check_fields(spec: Any, *dividers: tuple[str, str]) -> None:
    """Raise ValueError for a field that is not of its type, a negative one, or a divider that does not divide.

    Specs are filled from config.json and manifest.json, which may hold anything.
    """
    for name, kind in ((field.name, field.type) for field in fields(spec)):
        value = getattr(spec, name)
        if type(value).__name__ not in (("float", "int") if kind == "float" else (kind,)):
            raise ValueError(f"{name} must be {kind}, got {value!r}")
        if kind == "int" and value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    for part, whole in dividers:
        if getattr(spec, part) < 1 or getattr(spec, whole) % getattr(spec, part):
            raise ValueError(f"{part} {getattr(spec, part)} must divide {whole} {getattr(spec, whole)}")


@dataclass(frozen=True, slots=True)
class TowerSpec:
    """One vision transformer. Features are the output of block `depth - 2`, so the last block never runs."""

    name: str
    image_size: int
    patch: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    class_token: bool
    registers: int
    layer_scale: bool
    attention_pool: bool
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        check_fields(self, ("heads", "width"))
        if not 1 <= self.patch <= self.image_size:
            raise ValueError(f"patch {self.patch} must fit image_size {self.image_size}")

    @property
    def prefix(self) -> int:
        """Tokens before the patches: class token and registers; they are dropped from the features."""
        return int(self.class_token) + self.registers

    @property
    def grid(self) -> int:
        return self.image_size // self.patch

    @property
    def patches(self) -> int:
        return self.grid**2

    @property
    def used_blocks(self) -> int:
        return self.depth - 1


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A Llama. Defaults are those of `LlamaConfig` in transformers 4.40.1, which config.json relies on."""

    vocab_rows: int = 32000
    width: int = 4096
    mlp_width: int = 11008
    layers: int = 32
    heads: int = 32
    kv_heads: int = 32
    max_positions: int = 2048
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    bos: int = 1
    eos: int = 2

    def __post_init__(self) -> None:
        check_fields(self, ("heads", "width"), ("kv_heads", "heads"))

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_width

    def linears(self) -> dict[str, tuple[int, int]]:
        """Linear layers of one decoder layer: name -> (out features, in features)."""
        return {
            "self_attn.q_proj": (self.width, self.width),
            "self_attn.k_proj": (self.kv_width, self.width),
            "self_attn.v_proj": (self.kv_width, self.width),
            "self_attn.o_proj": (self.width, self.width),
            "mlp.gate_proj": (self.mlp_width, self.width),
            "mlp.up_proj": (self.mlp_width, self.width),
            "mlp.down_proj": (self.width, self.mlp_width),
        }


@dataclass(frozen=True, slots=True)
class ActionSpec:
    """Where the action tokens lie. The last `bins` ids below `end` stand for bins, highest id first."""

    bins: int
    end: int
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 2 <= self.bins <= self.end or not self.low < self.high:
            raise ValueError(f"{self.bins} bins must lie below id {self.end}, and {self.low} below {self.high}")

    @property
    def first(self) -> int:
        return self.end - self.bins


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """The whole network: towers (features concatenated in this order), projector, decoder, action tokens."""

    towers: tuple[TowerSpec, ...]
    decoder: DecoderSpec
    action: ActionSpec

    @property
    def fused(self) -> bool:
        return len(self.towers) > 1

    @property
    def vision_width(self) -> int:
        return sum(tower.width for tower in self.towers)

    @property
    def patches(self) -> int:
        return self.towers[0].patches

    @property
    def image_size(self) -> int:
        return self.towers[0].image_size

    @property
    def projector_widths(self) -> tuple[int, ...]:
        """Widths between the projector's linears, input first: three linears when fused, two otherwise."""
        text = self.decoder.width
        return (self.vision_width, 4 * self.vision_width, text, text) if self.fused else (self.vision_width, text, text)


_DINO = TowerSpec("vit_large_patch14_reg4_dinov2.lvd142m", 224, 14, 1024, 24, 16, 4096, True, 4, True, False)
_SIGLIP = TowerSpec("vit_so400m_patch14_siglip_224", 224, 14, 1152, 27, 16, 4304, False, 0, False, True)

TOWERS: Final[Mapping[str, TowerSpec]] = {
    spec.name: spec for spec in (_DINO, _SIGLIP, replace(_SIGLIP, name="vit_so400m_patch14_siglip_384", image_size=384))
}

OPENVLA_7B: Final = PolicySpec(
    towers=(_DINO, _SIGLIP),
    decoder=DecoderSpec(vocab_rows=32064),
    action=ActionSpec(bins=256, end=32000),
)

OPENVLA_DIMS: Final = 7  # x, y, z, roll, pitch, yaw, gripper

TINY: Final = PolicySpec(
    towers=(
        TowerSpec(_DINO.name, 28, 14, 16, 3, 2, 64, True, 4, True, False),
        TowerSpec(_SIGLIP.name, 28, 14, 24, 2, 2, 89, False, 0, False, True),
    ),
    decoder=DecoderSpec(vocab_rows=448, width=64, mlp_width=128, layers=2, heads=4, kv_heads=4),
    action=ActionSpec(bins=64, end=384),
)
