"""What the format study exports: for each question its recipes, and what each is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from benchmarks.formats.results import FLOOR
from edge_vla.export import Recipe
from edge_vla.export.sizes import fixed_bytes, linear_weights, vision_bytes
from edge_vla.quant import BYTE, Scheme, stored_bytes
from edge_vla.spec import OPENVLA_7B, PolicySpec

GROUP: Final = 128
ROUNDED: Final = ", prefill rounded"  # behind the name of a case that runs on int8 activations


@dataclass(frozen=True)
class Case:
    """A recipe, and the name of the row that its result is compared with."""

    recipe: Recipe
    against: str


def methods(_: PolicySpec) -> Mapping[str, Case]:
    """Every quantisation method, at the bits where it applies."""
    return {
        "int8": Case(Recipe(bits=8), FLOOR),
        "w8a8": Case(Recipe(bits=8, activations=8), "int8"),
        "w8a8 GPTQ": Case(Recipe(bits=8, activations=8, method="gptq"), "w8a8"),
        "w8a8 SmoothQuant": Case(Recipe(bits=8, method="smoothquant"), "w8a8"),
        "w8a8 SmoothQuant, GPTQ": Case(Recipe(bits=8, method="smoothquant+gptq"), "w8a8 SmoothQuant"),
        "int4": Case(Recipe(), "int8"),
        "int4 clipped": Case(Recipe(method="awq", alpha=0.0), "int4"),
        "int4 AWQ": Case(Recipe(method="awq"), "int4"),
        "int4 GPTQ": Case(Recipe(method="gptq"), "int4"),
        "uint4": Case(Recipe(asymmetric=True), "int4"),
        "uint4 AWQ": Case(Recipe(asymmetric=True, method="awq"), "uint4"),
        "uint4 GPTQ": Case(Recipe(asymmetric=True, method="gptq"), "int4 GPTQ"),
    }


def rotation(_: PolicySpec) -> Mapping[str, Case]:
    """Each scheme as it is and rotated; int8 shows what weights alone lose."""
    return {
        "bf16 rotated": Case(Recipe(bits=16, rotate=True), FLOOR),
        "int8": Case(Recipe(bits=8), FLOOR),
        "int8 rotated": Case(Recipe(bits=8, rotate=True), "int8"),
        "w8a8": Case(Recipe(bits=8, activations=8), "int8"),
        "w8a8 rotated": Case(Recipe(bits=8, activations=8, rotate=True), "w8a8"),
        "int4": Case(Recipe(), "int8"),
        "int4 rotated": Case(Recipe(rotate=True), "int4"),
    }


def bits(spec: PolicySpec) -> Mapping[str, Case]:
    """Mixed bits beside uniform ones: at int4's budget, at about three bits, and where towers may be traded too.

    The towers are three quarters of the demo policy and a fifth of OpenVLA, so the last is also asked in OpenVLA's
    proportion: with the bits a weight that int8 towers free there.
    """
    shapes = spec.decoder.linears().values()
    linears = spec.decoder.layers * sum(stored_bytes(Scheme.INT4, shape, GROUP) for shape in shapes)
    int4_bits = 4 + 16 / GROUP
    return {
        "int4": Case(Recipe(method="gptq"), FLOOR),
        "mixed 4.125": Case(Recipe(method="gptq", bits_per_weight=int4_bits), "int4"),
        "mixed, int4's total bytes": Case(
            Recipe(method="gptq", budget=linears + fixed_bytes(spec) + vision_bytes(spec, 16)), "int4"
        ),
        "mixed, int8 towers, OpenVLA's proportion": Case(
            Recipe(method="gptq", bits_per_weight=int4_bits + freed_bits(OPENVLA_7B), vision_bits=8), "int4"
        ),
        "int3": Case(Recipe(bits=3, method="gptq"), "int4"),
        "mixed 3.25": Case(Recipe(method="gptq", bits_per_weight=3.25), "int3"),
        "mixed 3.5": Case(Recipe(method="gptq", bits_per_weight=3.5), "int3"),
    }


def freed_bits(spec: PolicySpec) -> float:
    """Bits for each weight of the decoder's linears, where towers and projector go from 16 bits to 8."""
    return BYTE * (vision_bytes(spec, 16) - vision_bytes(spec, 8)) / linear_weights(spec.decoder)


@dataclass(frozen=True)
class Question:
    """`rounded` are cases that also run on a kernel which rounds a prefill's activations to int8.

    `planted` names the outliers that the policy gets first (`benchmarks.formats.outliers`). `first_row` are rows that
    are measured again with beginning-of-sequence's keys and values from a case whose rows are 16 bits.
    """

    cases: Callable[[PolicySpec], Mapping[str, Case]]
    rounded: tuple[str, ...] = ()
    planted: str | None = None
    first_row: Mapping[str, str] = field(default_factory=dict)


W4A8: Final = ("int4", "int4 rotated")
FIRST_ROW: Final = {"w8a8": "int8", f"int4{ROUNDED}": "int4"}  # with the same codes
QUESTIONS: Final[Mapping[str, Question]] = {
    "methods": Question(methods, ("int8", "int4 GPTQ")),
    "bits": Question(bits),
    "rotate": Question(rotation, W4A8, first_row=FIRST_ROW),
    "rotate-loud": Question(rotation, W4A8, "loud", FIRST_ROW),
    "rotate-turned": Question(rotation, W4A8, "turned", FIRST_ROW),
    "rotate-massive": Question(rotation, W4A8, "massive", FIRST_ROW),
}
