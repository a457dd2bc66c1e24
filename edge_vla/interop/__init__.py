"""Other programs' quantised checkpoints: how their matrices are stored. Shared by both islands.

GPTQ and compressed-tensors are read and written, bitsandbytes' 4 bits are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from edge_vla.errors import CheckpointError
from edge_vla.interop.bitsandbytes import BitsAndBytes
from edge_vla.interop.compressed import CompressedTensors
from edge_vla.interop.gptq import Gptq
from edge_vla.interop.layout import Layout, Parts, Shape, refuse

__all__ = [
    "FORMATS",
    "WRITTEN",
    "BitsAndBytes",
    "CompressedTensors",
    "Gptq",
    "Layout",
    "Parts",
    "Shape",
    "Written",
    "read_layout",
]

FORMATS: Final[Mapping[str, Callable[[object], Layout]]] = {
    Gptq.name: Gptq.read,
    CompressedTensors.name: CompressedTensors.read,
    BitsAndBytes.name: BitsAndBytes.read,
}
Written = Gptq | CompressedTensors
WRITTEN: Final[Mapping[str, Callable[[int, int | None], Written]]] = {
    Gptq.name: Gptq,
    CompressedTensors.name: CompressedTensors,
}


def read_layout(raw: object) -> Layout:
    """The format that a `quantization_config` describes; CheckpointError for one that is not read."""
    if not isinstance(raw, Mapping):
        raise CheckpointError(f"quantization_config must be a JSON object, got {raw!r}: download it again")
    method = raw.get("quant_method", BitsAndBytes.name if raw.get("load_in_4bit") else None)
    if not isinstance(method, str) or method not in FORMATS:
        refuse(f"quantization_config: quant_method {method!r} is not among {sorted(FORMATS)}")
    try:
        return FORMATS[method](raw)
    except ValueError as error:
        raise CheckpointError(f"malformed {error}: download it again") from error
