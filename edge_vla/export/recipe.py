"""What an export is told, in full: defaults here, a TOML file over them, the command line over both."""

from __future__ import annotations

import dataclasses
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from edge_vla.checkpoint import Arithmetic
from edge_vla.errors import UsageError
from edge_vla.quant import BITS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


Method = Literal["rtn", "gptq", "awq", "smoothquant", "smoothquant+gptq"]
METHODS: Final = get_args(Method)
DEVICES: Final = ("cpu", "cuda")
INT8: Final = 8
ALWAYS: Final = ("bits", "group", "merge_arithmetic")


@dataclass(frozen=True)
class Recipe:
    """`group` None means the largest of 128, 64 and 32 that divides a tensor's inputs.

    `method` is how codes are chosen: `rtn` rounds each weight to the nearest, `gptq` rounds so that the answers on
    `calibration_frames` recorded frames stay. It is never chosen by itself: calibrating takes about ten times as long.
    `awq` and `smoothquant` move scales from each input into its weight first, `awq` for few bits and `smoothquant` for
    int8 activations; `smoothquant+gptq` then rounds as `gptq` does. `alpha` is the exponent, searched where it is None.
    `activations` are the bits that products round their input to, 16 or 8; None means 8 for `smoothquant`, else 16.
    `asymmetric` gives each group of 4 bits a zero point.
    `bits_per_weight` of the decoder's linears, or a `budget` of bytes for the whole artifact, gives each linear 2, 3,
    4, 8 or 16 bits by what it costs the answers, and then `bits` is ignored. What it costs is measured a layer at a
    time, so it works at any size; where mixing is not predicted to be worth it, all linears get one form.
    `device` is where a `gptq` export calculates, `cpu` or `cuda`: sums in another order are other bits, so it is part
    of the recipe and never chosen by itself.
    `vision_bits` are those of towers and projector, 16 or 8; with a `budget`, 16 lets it choose between the two.
    """

    bits: int = 4
    group: int | None = None
    merge_arithmetic: Arithmetic = "fp32"
    method: Method = "rtn"
    calibration_frames: int = 128
    seed: int = 0
    bits_per_weight: float | None = None
    budget: int | None = None
    vision_bits: int = 16
    activations: int | None = None
    alpha: float | None = None
    asymmetric: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise UsageError(f"bits {self.bits}: choose one of {sorted(BITS)}")
        if self.merge_arithmetic not in get_args(Arithmetic):
            raise UsageError(f"merge_arithmetic {self.merge_arithmetic!r}: choose one of {get_args(Arithmetic)}")
        if self.method not in METHODS:
            raise UsageError(f"method {self.method!r}: choose one of {METHODS}")
        if self.group is not None and self.bits > 4:
            raise UsageError(f"group {self.group} is for 4 bits and fewer; {self.bits} bits have none")
        if self.vision_bits not in (16, 8):
            raise UsageError(f"vision_bits {self.vision_bits}: choose 16 or 8")
        if self.calibration_frames < 1:
            raise UsageError(f"calibration_frames {self.calibration_frames}: at least 1")
        if self.method != "rtn" and not self.calibrated:
            raise UsageError(f"--method {self.method} chooses codes, and 16 bits have none: leave it out")
        if self.mixed and self.method != "gptq":
            raise UsageError("a budget is spent by measuring answers on frames: --method gptq --frames DIR")
        self._check_scaling()
        if self.device not in DEVICES:
            raise UsageError(f"device {self.device!r}: choose one of {DEVICES}")
        if self.device != "cpu" and self.method != "gptq":
            raise UsageError(f"--device {self.device} is for --method gptq: {self.method} calculates on the CPU")
        if self.bits_per_weight is not None and not 0 < self.bits_per_weight <= 16:
            raise UsageError(f"bits per weight {self.bits_per_weight:g}: more than 0, at most 16")
        if self.bits_per_weight is not None and self.budget is not None:
            raise UsageError("bits per weight and a budget in bytes are two ways to say one thing: give one")

    @property
    def mixed(self) -> bool:
        """Whether bits differ from linear to linear."""
        return self.bits_per_weight is not None or self.budget is not None

    @property
    def calibrated(self) -> bool:
        return self.method != "rtn" and (self.mixed or self.bits < 16)

    @property
    def scaled(self) -> Literal["awq", "smoothquant"] | None:
        """By which rule scales move from inputs into weights."""
        if self.method.startswith("smoothquant"):
            return "smoothquant"
        return "awq" if self.method == "awq" else None

    @property
    def compensated(self) -> bool:
        """Whether later columns make up for earlier ones' errors."""
        return self.method.endswith("gptq")

    @property
    def rounds_activations(self) -> bool:
        return self.activations == INT8 or self.scaled == "smoothquant"

    def _check_scaling(self) -> None:
        if self.activations not in (None, 16, INT8):
            raise UsageError(f"activations {self.activations}: choose 16 or 8")
        if self.rounds_activations and (self.bits != INT8 or self.mixed):
            raise UsageError("activations in 8 bits are for weights in 8 bits: --bits 8")
        if self.scaled == "smoothquant" and self.activations == 16:
            raise UsageError(f"{self.method} is for activations in 8 bits: leave out --activations, or --method rtn")
        if self.scaled == "awq" and not 2 <= self.bits <= 4:
            raise UsageError(f"{self.method} is for 4 bits and fewer, got {self.bits}: --method smoothquant for 8")
        if self.alpha is not None and self.scaled is None:
            raise UsageError(f"alpha is the exponent of awq and smoothquant; {self.method} has none")
        if self.alpha is not None and not 0 <= self.alpha <= 1:  # NaN is not either
            raise UsageError(f"alpha {self.alpha:g}: choose 0 to 1, or leave it out to have it searched")
        if self.asymmetric and (self.bits != 4 or self.mixed):
            raise UsageError("asymmetric grids are for --bits 4, the same everywhere")

    def to_json(self) -> dict[str, Any]:
        """What was asked for: the first three always, the rest where it is not the default."""
        default = Recipe()
        values = dataclasses.asdict(self)
        told = {name: value for name, value in values.items() if name in ALWAYS or value != getattr(default, name)}
        return {**told, "activations": INT8} if self.rounds_activations else told

    @staticmethod
    def read(path: Path) -> Recipe:
        """From a TOML file; an unknown key or a wrong type raises UsageError."""
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UsageError(f"--recipe {path}: no such file") from error
        except OSError as error:
            raise UsageError(f"--recipe {path} cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"--recipe {path} is not valid TOML: {error}") from error
        return Recipe(**_known(raw, path))


def parse_bytes(text: str) -> int:
    """`4.2GB`, `800MB` or a whole number of bytes; a GB is 1e9. UsageError for anything else."""
    units = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]B|)", text.strip().upper())
    if not match or not float(match[1]):
        raise UsageError(f"--budget {text}: expected bytes like 4.2GB or 800MB")
    return round(float(match[1]) * units[match[2]])


def _known(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    types: dict[str, type] = {
        "bits": int,
        "group": int,
        "merge_arithmetic": str,
        "method": str,
        "calibration_frames": int,
        "seed": int,
        "bits_per_weight": float,
        "budget": int,
        "vision_bits": int,
        "activations": int,
        "alpha": float,
        "asymmetric": bool,
        "device": str,
    }
    for key, value in raw.items():
        if key not in types:
            raise UsageError(f"--recipe {path}: unknown key {key!r}; known: {sorted(types)}")
        if type(value) is not types[key]:
            raise UsageError(f"--recipe {path}: {key} must be {types[key].__name__}, got {value!r}")
    assert set(types) == {field.name for field in dataclasses.fields(Recipe)}, "every field can be set from TOML"
    return raw
