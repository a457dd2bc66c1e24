"""Devices to plan for: memory, and the ceilings of reading and of arithmetic, each figure with its source.

A ceiling is measured where somebody published a measurement, else it is a data sheet's. The best of engines reach most
of a measured one and about two thirds of a data sheet's, so a device says which of the two its own are. Arithmetic is
dense; bf16 sums in float32. Data only, and light: the command line lists it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

SHEET: Final = "data sheet"
# Lowest and highest share of a ceiling that published engines reached. Of data sheets: TinyChat, exllamav2, gpt-fast,
# MLC, realtime-vla. Of ceilings measured on an AGX Orin: vla.cpp's towers, TensorRT-Edge-LLM's and FlashRT's prefills,
# FlashRT's int8 and MLC's 4-bit decode steps.
OF_SHEET: Final[Mapping[str, tuple[float, float]]] = {
    "vision": (0.50, 0.70),
    "prefill": (0.50, 0.70),
    "decode": (0.66, 0.88),
}
OF_MEASURED: Final[Mapping[str, tuple[float, float]]] = {
    "vision": (0.20, 0.72),
    "prefill": (0.72, 0.76),
    "decode": (0.89, 0.97),
}


@dataclass(frozen=True)
class Figure:
    """Bytes or operations a second, and who says so."""

    value: float
    source: str = SHEET


@dataclass(frozen=True)
class Device:
    """`shared`: the CPU's memory and the GPU's are one. Memory in bytes. `reached` is of these ceilings."""

    name: str
    memory: float
    read: Figure
    bf16: Figure
    int8: Figure
    shared: bool = False
    reached: Mapping[str, tuple[float, float]] = field(default_factory=lambda: OF_SHEET)

    def sources(self) -> dict[str, str]:
        return {"reading": self.read.source, "bf16": self.bf16.source, "int8": self.int8.source}


# AGX Orin 64 GB at MAXN, by FlashRT: docs/chameleon7b_rtx_sm87.md, hyvla05 and groot_n17. Its data sheet: 204.8 GB/s,
# 42.5 TFLOP/s, 85 TOPS; 70 % of that in bf16 cannot be had.
ORIN_READ: Final = Figure(173e9, "measured: FlashRT, weights streamed by its best kernel")
ORIN_BF16: Final = Figure(29.5e12, "measured: FlashRT, cuBLAS")
ORIN_INT8: Final = Figure(64.4e12, "measured: FlashRT, CUTLASS")
ORIN_BUS, ORIN_CORES, ORIN_MHZ = 204.8e9, 2048, 1300


def _orin(name: str, memory: float, cores: int, mhz: int, bus: float) -> Device:
    """A smaller Orin: the same cores, fewer and slower, so AGX Orin's measured ceilings in proportion."""
    part = cores * mhz / (ORIN_CORES * ORIN_MHZ)
    read = Figure(ORIN_READ.value * bus / ORIN_BUS, f"AGX Orin's measured, by a bus of {bus / 1e9:.1f} GB/s")
    scaled = f"AGX Orin's measured, by {cores} cores at {mhz} MHz"
    bf16, int8 = Figure(ORIN_BF16.value * part, scaled), Figure(ORIN_INT8.value * part, scaled)
    return Device(name, memory, read, bf16, int8, shared=True, reached=OF_MEASURED)


def _card(name: str, gigabytes: float, read: float, bf16: float, int8: float) -> Device:
    """A card by its data sheet: GB, GB/s, TFLOP/s and TOPS, dense."""
    return Device(name, gigabytes * 1e9, Figure(read * 1e9), Figure(bf16 * 1e12), Figure(int8 * 1e12))


def _cpu(name: str, bf16: Figure, int8: Figure) -> Device:
    read = Figure(89.6e9, f"{SHEET}: DDR5-5600, two channels")
    return Device(name, 32e9, read, bf16, int8, shared=True)


DEVICES: Final[Mapping[str, Device]] = {
    "orin-64": Device("Jetson AGX Orin 64 GB", 64e9, ORIN_READ, ORIN_BF16, ORIN_INT8, True, OF_MEASURED),
    "orin-32": _orin("Jetson AGX Orin 32 GB", 32e9, 1792, 930, 204.8e9),
    "orin-nx-16": _orin("Jetson Orin NX 16 GB, Super", 16e9, 1024, 1173, 102.4e9),
    "orin-nx-8": _orin("Jetson Orin NX 8 GB, Super", 8e9, 1024, 1173, 102.4e9),
    "orin-nano-super": _orin("Jetson Orin Nano 8 GB, Super", 8e9, 1024, 1020, 102.4e9),
    "orin-nano": _orin("Jetson Orin Nano 8 GB", 8e9, 1024, 625, 68e9),
    "thor": Device("Jetson AGX Thor", 128e9, Figure(273e9), Figure(259e12), Figure(517e12), shared=True),
    # GeForce: bf16 is twice, int8 eight times the data sheet's float32 rate, on these three generations.
    "rtx3060": _card("GeForce RTX 3060 12 GB", 12, 360, 25.5, 102),
    "rtx3090": _card("GeForce RTX 3090", 24, 936, 71.2, 284),
    "rtx4060": _card("GeForce RTX 4060", 8, 272, 30.2, 121),
    "rtx4060ti-16": _card("GeForce RTX 4060 Ti 16 GB", 16, 288, 44.1, 176),
    "rtx4070": _card("GeForce RTX 4070", 12, 504, 58.3, 233),
    "rtx4090": _card("GeForce RTX 4090", 24, 1008, 165.2, 660),
    "rtx5060ti-16": _card("GeForce RTX 5060 Ti 16 GB", 16, 448, 47.4, 190),
    "rtx5070": _card("GeForce RTX 5070", 12, 672, 61.7, 247),
    "rtx5090": _card("GeForce RTX 5090", 32, 1792, 209.5, 838),
    "rtx4060-laptop": _card("GeForce RTX 4060 Laptop", 8, 256, 29, 116),
    "rtx4070-laptop": _card("GeForce RTX 4070 Laptop", 8, 256, 40, 160),
    "rtx4090-laptop": _card("GeForce RTX 4090 Laptop", 16, 576, 86, 343),
    "h100": _card("H100 SXM", 80, 3350, 989, 1979),
    "h200": Device(
        "H200",
        141e9,
        Figure(4300e9, "measured elsewhere: a copy"),
        Figure(790e12, "measured elsewhere: a product"),
        Figure(1979e12),
    ),
    # Eight cores. With AVX-512 BF16 by what two Zen 5 cores were measured at (757 GFLOP/s), times four.
    "cpu-avx512": _cpu(
        "CPU, 8 cores with AVX-512 BF16 and VNNI",
        Figure(3.0e12, "two cores measured, by four"),
        Figure(6.0e12, "twice the bf16 rate"),
    ),
    "cpu-avx2": _cpu(
        "CPU, 8 cores with AVX2",
        Figure(1.0e12, "two 8-wide float32 units at 4 GHz a core"),
        Figure(2.0e12, "twice the float32 rate"),
    ),
}
