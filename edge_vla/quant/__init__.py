"""Number formats of decoder weights: grids, packing, dequantisation. Shared by the build side and the run side."""

from edge_vla.quant.formats import (
    BITS,
    GROUPS,
    PackedWeight,
    Scheme,
    dequantise,
    pack_nibbles,
    plan,
    quantise,
    relative_error,
    sixteen,
    stored_bytes,
    unpack_nibbles,
)

__all__ = [
    "BITS",
    "GROUPS",
    "PackedWeight",
    "Scheme",
    "dequantise",
    "pack_nibbles",
    "plan",
    "quantise",
    "relative_error",
    "sixteen",
    "stored_bytes",
    "unpack_nibbles",
]
