"""What an export is told, in full: defaults here, a TOML file over them, the command line over both."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from edge_vla.checkpoint import Arithmetic
from edge_vla.errors import UsageError
from edge_vla.quant import BITS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Recipe:
    """`group` None means the largest of 128, 64 and 32 that divides a tensor's inputs."""

    bits: int = 4
    group: int | None = None
    merge_arithmetic: Arithmetic = "fp32"

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise UsageError(f"bits {self.bits}: choose one of {sorted(BITS)}")
        if self.merge_arithmetic not in get_args(Arithmetic):
            raise UsageError(f"merge_arithmetic {self.merge_arithmetic!r}: choose one of {get_args(Arithmetic)}")
        if self.group is not None and self.bits != 4:
            raise UsageError(f"group {self.group} is for 4 bits; {self.bits} bits have none")

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


def _known(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    types = {"bits": int, "group": int, "merge_arithmetic": str}
    for key, value in raw.items():
        if key not in types:
            raise UsageError(f"--recipe {path}: unknown key {key!r}; known: {sorted(types)}")
        if type(value) is not types[key]:
            raise UsageError(f"--recipe {path}: {key} must be {types[key].__name__}, got {value!r}")
    assert set(types) == {field.name for field in dataclasses.fields(Recipe)}, "every field can be set from TOML"
    return raw
