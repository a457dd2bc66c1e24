"""Write `safetensors` and `npz` files with numpy alone; uint16 arrays are bfloat16 bit patterns."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

CODES: Final = {np.dtype(np.uint16): "BF16", np.dtype(np.float32): "F32"}


def write_safetensors(path: Path, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """By hand because numpy has no bfloat16 that the library would take."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for key, values in tensors.items():
        header[key] = {
            "dtype": CODES[values.dtype],
            "shape": list(values.shape),
            "data_offsets": [offset, offset + values.nbytes],
        }
        offset += values.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for values in tensors.values():
            file.write(values.astype(values.dtype.newbyteorder("<")).tobytes())


def write_npz(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Compressed harder than numpy does and without a date, so that the same arrays give the same file."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            with io.BytesIO() as memory:
                np.lib.format.write_array(memory, np.asarray(values), allow_pickle=False)
                archive.writestr(entry, memory.getvalue(), compresslevel=9)
