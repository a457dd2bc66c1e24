"""Jetson Linux, JetPack, and what of Python, CUDA and TensorRT belongs to each. Data, from NVIDIA's release pages.

Releases between two listed ones count as the older: 36.4.7 is 36.4.4's JetPack.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

RELEASES: Final = (
    ((35, 1), "5.0.2"),
    ((35, 2, 1), "5.1"),
    ((36, 2), "6.0 DP"),
    ((36, 3), "6.0"),
    ((36, 4), "6.1"),
    ((36, 4, 3), "6.2"),
    ((36, 4, 4), "6.2.1"),
    ((36, 5), "6.2.2"),
    ((36, 5, 2), "6.2.3"),
    ((38, 2), "7.0"),
    ((38, 4), "7.1"),
    ((39, 2), "7.2"),
    ((39, 2, 1), "7.2.1"),
)


@dataclass(frozen=True)
class JetPack:
    """`torch` is the command that installs the torch of this JetPack."""

    name: str
    python: tuple[int, int]
    cuda: str
    tensorrt: tuple[int, int] | None
    torch: str


# As of 2026-11. JetPack 6's torch is in the Jetson AI Lab's index alone; JetPack 7's GPU takes PyPI's CUDA 13.
TORCH_6: Final = "pip install 'numpy<2' torch --index-url https://pypi.jetson-ai-lab.io/jp6/cu126"
TORCH_7: Final = "pip install torch --index-url https://download.pytorch.org/whl/cu130"


def jetpack(l4t: str) -> JetPack | None:
    """Of an L4T release such as R36.4.3; None for one older than JetPack 5."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", l4t))
    known = [name for release, name in RELEASES if release <= numbers]
    if not known:
        return None
    name = known[-1]
    if name.startswith("5"):
        return JetPack(name, (3, 8), "11.4", (8, 5), TORCH_6)
    if name.startswith("6"):
        return JetPack(name, (3, 10), "12.6", (10, 3), TORCH_6)
    current = name.startswith("7.2")
    return JetPack(name, (3, 12), "13.2" if current else "13.0", (10, 16) if current else None, TORCH_7)
