"""INT8 towers and projector: calibrated, measured, and written as a Q/DQ graph."""

from edge_vla.export.vision_int8.choose import Choice, choose
from edge_vla.export.vision_int8.data import write_int8

__all__ = ["Choice", "choose", "write_int8"]
