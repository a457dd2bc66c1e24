"""In which arithmetic a typed vision graph computes."""

from __future__ import annotations

from enum import Enum
from typing import Final


class Arithmetic(str, Enum):
    """The type between products. Sums inside a product are the runtime's own."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


class Precision(str, Enum):
    """A typed graph as users name it. `int8`: products of 8-bit rows and weights, everything else fp16."""

    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"

    @property
    def arithmetic(self) -> Arithmetic:
        return Arithmetic.FP16 if self is Precision.INT8 else Arithmetic(self.value)

    @property
    def graph(self) -> str:
        """The file's name in an artifact, or in the device cache."""
        return f"vision.{self.value}.onnx"


PRECISIONS: Final = tuple(precision.value for precision in Precision)
INT8_DATA: Final = "vision.int8.safetensors"  # beside the int8 graph: codes, scales and what stays in 16 bits
