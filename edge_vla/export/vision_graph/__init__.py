"""Strongly typed ONNX graphs of towers and projector, written node by node over stored weights."""

from edge_vla.export.vision_graph.network import Ranges, RowRange, write_typed_graph

__all__ = ["Ranges", "RowRange", "write_typed_graph"]
