"""What every foreign format has to say for itself, and how a stored one is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn, Protocol

from torch import Tensor

from edge_vla.errors import CheckpointError
from edge_vla.quant import PackedWeight

Shape = tuple[int, ...]


class Stored(Protocol):
    """Named tensors in files."""

    def shape(self, name: str) -> Shape: ...

    def load(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class Parts:
    """The stored tensors that make up one matrix, by the part they are; `what` names the matrix in an error."""

    what: str
    stored: Stored
    names: Mapping[str, str]

    def __contains__(self, part: str) -> bool:
        return part in self.names

    def shape(self, part: str) -> Shape:
        return self.stored.shape(self.names[part])

    def load(self, part: str, shape: Shape | None = None) -> Tensor:
        """Read one; CheckpointError if it is not of `shape`."""
        if shape is not None and self.shape(part) != shape:
            raise CheckpointError(f"{self.what}.{part} is {self.shape(part)}, expected {shape}: download it again")
        return self.stored.load(self.names[part])


class Decoded(Protocol):
    """One matrix read from its parts."""

    def weight(self) -> Tensor:
        """The dequantised matrix, bit for bit what the format's own library makes of it."""
        ...

    def packed(self) -> PackedWeight | None:
        """The same codes in this package's own format, or None where it has no such grid."""
        ...


class Layout(Protocol):
    """How one format stores a matrix."""

    @property
    def name(self) -> str: ...

    def __str__(self) -> str:
        """For a table: the format, its bits and groups."""
        ...

    @property
    def parts(self) -> Mapping[str, bool]:
        """What takes the place of `weight` in a matrix's name, and whether it must be there."""
        ...

    @property
    def group(self) -> int | None:
        """Inputs a scale, where our own formats can take over the codes."""
        ...

    def shape(self, parts: Parts) -> Shape:
        """Shape of the matrix, without reading its codes."""
        ...

    def decode(self, parts: Parts) -> Decoded:
        """CheckpointError for parts that don't fit each other."""
        ...


def refuse(reason: str) -> NoReturn:
    raise CheckpointError(f"{reason}: give the 16-bit checkpoint that it was made from")


def require(key: str, value: object, allowed: tuple[object, ...]) -> None:
    """CheckpointError for a setting of `quantization_config` with another value than those that are implemented."""
    if value not in allowed:
        refuse(f"quantization_config: {key} {value!r} is not among {list(allowed)}")
