"""Chips by their names: what tiles depend on, where there is no device to ask.

Source: the CUDA C++ programming guide, technical specifications by compute capability, and data sheets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from edge_vla.errors import UsageError
from edge_vla.runtime.gpu.kernels.tiles import Chip

CHIPS: Final[Mapping[str, Chip]] = {  # of each capability the one with the most multiprocessors that is sold
    "sm_80": Chip((8, 0), 108, 163 * 1024),  # A100
    "sm_86": Chip((8, 6), 82, 99 * 1024),  # RTX 3090
    "sm_87": Chip((8, 7), 16, 163 * 1024),  # Jetson AGX Orin 64 GB
    "sm_89": Chip((8, 9), 128, 99 * 1024),  # RTX 4090
    "sm_90": Chip((9, 0), 132, 227 * 1024),  # H100 and H200, SXM
    "sm_100": Chip((10, 0), 148, 227 * 1024),  # B200
    "sm_120": Chip((12, 0), 170, 99 * 1024),  # RTX 5090
}


def chip_named(name: str, multiprocessors: int | None = None) -> Chip:
    """`sm_87` or `8.7`. UsageError for a chip that is not known, or a number of multiprocessors that none has."""
    digits = re.fullmatch(r"(?:sm_?)?(\d+)[._]?(\d)a?", name.lower())
    found = CHIPS.get(f"sm_{digits[1]}{digits[2]}") if digits else None
    if found is None:
        raise UsageError(
            f"--chip {name}: choose one of {', '.join(CHIPS)} (python: torch.cuda.get_device_capability())"
        )
    if multiprocessors is not None and not 1 <= multiprocessors <= 1024:
        raise UsageError(f"--multiprocessors {multiprocessors}: a GPU has 1 to 1024")
    return found if multiprocessors is None else replace(found, sm_count=multiprocessors)


def chip_name(chip: Chip) -> str:
    return f"sm_{chip.capability[0]}{chip.capability[1]}"


def in_words(chip: Chip) -> str:
    return f"{chip_name(chip)} with {chip.sm_count} multiprocessors"
