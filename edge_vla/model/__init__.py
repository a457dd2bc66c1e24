"""The network in plain torch, named by the checkpoint's own keys: the reference for everything faster."""

from edge_vla.model.decoder import Cache, Decoder
from edge_vla.model.network import OpenVLA
from edge_vla.model.vision import Projector, Tower, VisionBackbone

__all__ = ["Cache", "Decoder", "OpenVLA", "Projector", "Tower", "VisionBackbone"]
