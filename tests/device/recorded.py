"""Machines for the doctor: files, command outputs and imports as documentation shows them, no machine of ours.

Jetsons: trees after NVIDIA's developer guide; nvidia-smi, timedatectl and chronyc: their manual pages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from edge_vla.device.doctor.system import Imported, Interpreter, System
from edge_vla.device.sensors import SMI
from edge_vla.processor import X86, listed_features

JETSON: Final = Path(__file__).parent / "jetson"
GPU_LINE: Final = "NVIDIA GeForce RTX 4090, 560.35.03, P0, 2520, 3105, 10501, 68.00, 450.00, 41, {}, Disabled\n"
HEADER: Final = (
    "+-----------------------------------------------------------------------------------------+\n"
    "| NVIDIA-SMI 560.35.03              Driver Version: 560.35.03      CUDA Version: {}     |\n"
)
PYTHON: Final = Interpreter((3, 12, 3), "cpython-312-x86_64-linux-gnu", True, "/usr/bin/python3")
AVX2: Final = "fpu sse2 fma movbe popcnt f16c abm bmi1 avx2 bmi2"
XEON: Final = f"processor\t: 0\nflags\t\t: {AVX2} avx512f avx512dq avx512cd avx512bw avx512vl avx512_vnni avx512_bf16\n"
MEMINFO: Final = (
    "MemTotal:       32000000 kB\nMemAvailable:   {} kB\nCmaTotal:         262144 kB\nCmaFree:          200000 kB\n"
)
GPU_TORCH: Final = Imported(
    "2.11.0+cu126",
    facts={
        "cuda": "12.6",
        "gpu": "NVIDIA GeForce RTX 4090",
        "capability": "8.9",
        "architectures": "sm_80 sm_86 sm_90 compute_90",
        "free": "24000000000",
        "total": "25000000000",
    },
)
CPU_TORCH: Final = Imported("2.13.0+cpu", facts={"cuda": ""})


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content, encoding="utf-8")
    return root


def smi(cuda: str = "12.6", reasons: str = "0x0000000000000001") -> dict[str, str]:
    """Outputs of nvidia-smi: its table, and the query of `sensors`."""
    query = f"nvidia-smi --query-gpu={SMI.format('clocks_event_reasons')} --format=csv,noheader,nounits"
    return {"nvidia-smi": HEADER.format(cuda), query: GPU_LINE.format(reasons)}


def orin() -> dict[str, str]:
    """The tree of an AGX Orin with JetPack 6.2 (L4T R36.4.3), in 30 W."""
    return {path: f"{text}\n" for path, text in json.loads((JETSON / "agx-orin.json").read_text("utf-8")).items()}


def recorded(
    root: Path,
    files: Mapping[str, str] | None = None,
    outputs: Mapping[str, str] | None = None,
    modules: Mapping[str, Imported] | None = None,
    installed: Mapping[str, str] | None = None,
    **others: Any,
) -> System:
    """A machine of these files, outputs by command line, and modules; nothing else is there."""
    said, imports, there = dict(outputs or {}), dict(modules or {}), dict(installed or {})

    def run(command: Sequence[str]) -> str | None:
        return said.get(" ".join(command))

    return System(
        **{
            "root": tree(root, files or {}),
            "environment": {},
            "run": run,
            "importing": lambda name: imports.get(name, Imported()),
            "installed": there.get,
            "which": lambda name: "/usr/bin/cc" if name == "cc" else None,
            "free_disk": lambda path: 10**11,
            "python": PYTHON,
            "machine": X86,
            "allowed": frozenset(range(8)),
            "libraries": frozenset(),
            "features": listed_features((files or {}).get("proc/cpuinfo", ""), others.get("machine", X86)),
            **others,
        }
    )
