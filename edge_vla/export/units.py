"""The units of an export: each is a finished step, and holds what later steps need to know of it besides its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edge_vla.artifact import Linear, VisionCheck

KlCosts = dict[str, list[list[float]]]  # linear -> [fold][candidate format], nats per action token


@dataclass(frozen=True, kw_only=True)
class Unit:
    """`layer` is a decoder layer; None for a step that concerns no single layer."""

    layer: int | None = None


@dataclass(frozen=True, kw_only=True)
class FramesEmbedded(Unit):
    """The calibration frames are stored as the first layer's inputs."""


@dataclass(frozen=True, kw_only=True)
class LayerForwarded(Unit):
    """The output of an unquantised layer is stored as the next one's inputs."""


@dataclass(frozen=True, kw_only=True)
class ActionsProbed(Unit):
    """The gradients of the action distribution at the last layer's output are stored."""


@dataclass(frozen=True, kw_only=True)
class LayerBackpropagated(Unit):
    """A layer's row weights and the gradients at its input are stored."""

    kl_costs: KlCosts  # empty unless bits are mixed


@dataclass(frozen=True, kw_only=True)
class VisionMeasured(Unit):
    """The KL cost of int8 towers and projector."""

    kl_cost: float


@dataclass(frozen=True)
class Scaling:
    """How strongly one stage was scaled. `error` is its squared output change, relative to that without scaling."""

    exponent: float | None  # None: not scaled
    error: float


@dataclass(frozen=True, kw_only=True)
class LayerWritten(Unit):
    """A layer's file is written."""

    linears: dict[str, Linear]
    scalings: dict[str, Scaling]  # by the first linear of each stage; empty unless the method scales


@dataclass(frozen=True, kw_only=True)
class RestWritten(Unit):
    """Embeddings, head, tokenizer, towers, projector and their ONNX graph are written."""

    check: VisionCheck


KINDS: Final[Mapping[str, type[Unit]]] = {kind.__name__: kind for kind in Unit.__subclasses__()}
