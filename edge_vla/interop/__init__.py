"""Other programs' quantised checkpoints. GPTQ and compressed-tensors are read and written, bitsandbytes' 4 bits read.

A layout says how a format stores a matrix: `parts` are the names in place of `weight` and whether each must be there,
`shape` reads no codes, `decode` raises CheckpointError for parts that do not fit each other. What it decodes has
`weight`, bit for bit what the format's own library makes of it, and `packed`, the same codes in a format of ours, or
None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from edge_vla.errors import CheckpointError
from edge_vla.interop.bitsandbytes import BitsAndBytes
from edge_vla.interop.compressed import CompressedTensors
from edge_vla.interop.gptq import Gptq
from edge_vla.interop.layout import Parts, Shape, refuse

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

Layout = Gptq | CompressedTensors | BitsAndBytes
Written = Gptq | CompressedTensors
FORMATS: Final[Mapping[str, Callable[[object], Layout]]] = {
    Gptq.name: Gptq.read,
    CompressedTensors.name: CompressedTensors.read,
    BitsAndBytes.name: BitsAndBytes.read,
}
WRITTEN: Final[Mapping[str, Callable[[int, int | None], Written]]] = {
    Gptq.name: Gptq,
    CompressedTensors.name: CompressedTensors,
}


def read_layout(raw: object) -> Layout:
    """The layout that a `quantization_config` describes; CheckpointError for one that is not implemented."""
    if not isinstance(raw, Mapping):
        raise CheckpointError(f"quantization_config must be a JSON object, got {raw!r}: download it again")
    method = raw.get("quant_method", BitsAndBytes.name if raw.get("load_in_4bit") else None)
    if not isinstance(method, str) or method not in FORMATS:
        refuse(f"quantization_config: quant_method {method!r} is not among {sorted(FORMATS)}")
    try:
        return FORMATS[method](raw)
    except ValueError as error:
        raise CheckpointError(f"malformed {error}: download it again") from error
