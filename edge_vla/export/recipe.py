"""The recipe of an export: defaults here, overridden by a TOML file, overridden by the command line."""

from __future__ import annotations

import dataclasses
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from edge_vla import typed_json
from edge_vla.checkpoint import Arithmetic
from edge_vla.errors import UsageError
from edge_vla.quant import BITS
from edge_vla.suggestions import choose

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


Method = Literal["rtn", "gptq", "awq", "smoothquant", "smoothquant+gptq"]
METHODS: Final = get_args(Method)
DEVICES: Final = ("cpu", "cuda")
INT8: Final = 8


@dataclass(frozen=True)
class Recipe:
    """`group` None means the largest of 128, 64 and 32 that divides a linear's in_features.

    `method` is how codes are chosen. `rtn` rounds each weight to nearest; the others are calibrated on
    `calibration_frames` recorded frames, which takes about ten times as long and is never chosen automatically. `gptq`
    keeps the outputs near. `awq` and `smoothquant` first move scales from each input into its weight, `awq` for few
    bits and `smoothquant` for int8 activations; `smoothquant+gptq` then rounds as `gptq` does. `alpha` is the exponent
    of the scales, searched where it is None.
    `activations` are the bits that products round their input to, 16 or 8; None means 8 for `smoothquant`, else 16.
    `asymmetric` gives each group of 4 bits a zero point.
    `bits_per_weight` of the decoder's linears, or a `budget` of bytes for the whole artifact, gives each linear 2, 3,
    4, 8 or 16 bits by its KL cost; `bits` is then ignored. Where mixing is not predicted to pay, all linears get one
    format.
    `vision_bits` are those of towers and projector, 16 or 8; with a `budget`, 16 lets it choose between the two.
    `device` is where a `gptq` export calculates, `cpu` or `cuda`: sums in another order give other bits, so it is part
    of the recipe and never chosen automatically.
    `rotate` turns the decoder by randomised Hadamard matrices of this `seed` first, which spreads outlier channels.
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
    rotate: bool = False

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise UsageError(f"got bits {self.bits}: choose one of {sorted(BITS)}")
        if self.merge_arithmetic not in get_args(Arithmetic):
            known = choose(self.merge_arithmetic, get_args(Arithmetic))
            raise UsageError(f"got merge_arithmetic {self.merge_arithmetic!r}: {known}")
        if self.method not in METHODS:
            raise UsageError(f"got method {self.method!r}: {choose(self.method, METHODS)}")
        if self.group is not None and self.bits > 4:
            raise UsageError(f"group {self.group} is for 4 bits and fewer; {self.bits} bits have none: leave it out")
        if self.vision_bits not in (16, INT8):
            raise UsageError(f"got vision_bits {self.vision_bits}: choose 16 or 8")
        if self.calibration_frames < 1:
            raise UsageError(f"got calibration_frames {self.calibration_frames}, expected at least 1")
        if self.method != "rtn" and not self.calibrated:
            raise UsageError(f"--method {self.method} chooses codes, and 16 bits have none: leave it out")
        if self.mixed and self.method != "gptq":
            raise UsageError("a budget is spent by KL costs on recorded frames: add --method gptq --frames DIR")
        if self.device not in DEVICES:
            raise UsageError(f"got device {self.device!r}: {choose(self.device, DEVICES)}")
        if self.device != "cpu" and self.method != "gptq":
            raise UsageError(f"--device {self.device} is for --method gptq; {self.method} calculates on the CPU")
        if self.bits_per_weight is not None and not 0 < self.bits_per_weight <= 16:
            raise UsageError(f"got {self.bits_per_weight:g} bits per weight, expected more than 0 and at most 16")
        if self.bits_per_weight is not None and self.budget is not None:
            raise UsageError("--bpw and --budget are two ways to say one thing: give one of them")
        self._check_scaling()

    @property
    def mixed(self) -> bool:
        """Whether a budget gives each linear its own bits."""
        return self.bits_per_weight is not None or self.budget is not None

    @property
    def chooses_vision_bits(self) -> bool:
        """Whether the budget also gives towers and projector their bits."""
        return self.budget is not None and self.vision_bits != INT8

    @property
    def calibrated(self) -> bool:
        """Whether codes are chosen on recorded frames."""
        return self.method != "rtn" and (self.mixed or self.bits < 16)

    @property
    def scaled(self) -> Literal["awq", "smoothquant"] | None:
        """The rule by which scales move from inputs into weights."""
        if self.method.startswith("smoothquant"):
            return "smoothquant"
        return "awq" if self.method == "awq" else None

    @property
    def compensated(self) -> bool:
        """Whether later columns of a weight compensate for the errors of earlier ones, as in GPTQ."""
        return self.method.endswith("gptq")

    @property
    def rounds_activations(self) -> bool:
        """Whether products round their input to int8."""
        return self.activations == INT8 or self.scaled == "smoothquant"

    def _check_scaling(self) -> None:
        if self.activations not in (None, 16, INT8):
            raise UsageError(f"got activations {self.activations}: choose 16 or 8")
        if self.rounds_activations and (self.bits != INT8 or self.mixed):
            raise UsageError("8-bit activations are for 8-bit weights: --bits 8")
        if self.scaled == "smoothquant" and self.activations == 16:
            raise UsageError(f"{self.method} is for 8-bit activations: leave out --activations, or use --method rtn")
        if self.scaled == "awq" and not 2 <= self.bits <= 4:
            raise UsageError(f"{self.method} is for 4 bits and fewer, got {self.bits}: use --method smoothquant for 8")
        if self.alpha is not None and self.scaled is None:
            raise UsageError(f"alpha is the exponent of awq and smoothquant; {self.method} has none: leave it out")
        if self.alpha is not None and not 0 <= self.alpha <= 1:  # also false for NaN
            raise UsageError(f"got alpha {self.alpha:g}: choose 0 to 1, or leave it out to have it searched")
        if self.asymmetric and (self.bits != 4 or self.mixed):
            raise UsageError("zero points are for 4 bits everywhere: --asymmetric with --bits 4 and no budget")

    def resolved(self) -> Recipe:
        """With the bits of activations that the method implies, as the manifest records them."""
        return dataclasses.replace(self, activations=INT8) if self.rounds_activations else self

    @staticmethod
    def read(path: Path) -> Recipe:
        """From a TOML file. UsageError for one that cannot be read, an unknown key, or a value of another type."""
        try:
            return typed_json.from_json(Recipe, tomllib.loads(path.read_text(encoding="utf-8")), str(path))
        except FileNotFoundError as error:
            raise UsageError(f"--recipe {path}: no such file") from error
        except OSError as error:
            raise UsageError(f"--recipe {path} cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"--recipe {path} is not valid TOML: {error}") from error
        except ValueError as error:
            raise UsageError(f"--recipe {error}") from error


def parse_bytes(text: str) -> int:
    """`4.2GB`, `800MB` or a whole number of bytes; a GB is 1e9. UsageError for anything else, and for zero."""
    units = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]B|)", text.strip().upper())
    if not match or not float(match[1]):
        raise UsageError(f"got --budget {text}, expected bytes like 4.2GB or 800MB")
    return round(float(match[1]) * units[match[2]])
