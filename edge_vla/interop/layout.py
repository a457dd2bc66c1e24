"""The stored tensors of one matrix, and how a foreign format is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn, Protocol

from torch import Tensor

from edge_vla.errors import CheckpointError

Shape = tuple[int, ...]


class Stored(Protocol):
    """Named tensors in files."""

    def shape(self, name: str) -> Shape: ...

    def load(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class Parts:
    """The stored tensors that make up one matrix, by part; `what` names the matrix in an error."""

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


def refuse(reason: str) -> NoReturn:
    raise CheckpointError(f"{reason}: give the 16-bit checkpoint that it was made from")


def require(key: str, value: object, allowed: tuple[object, ...]) -> None:
    """CheckpointError for a setting of `quantization_config` with another value than those that are implemented."""
    if value not in allowed:
        refuse(f"quantization_config: {key} {value!r} is not among {list(allowed)}")
