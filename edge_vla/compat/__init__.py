"""A policy behind OpenVLA's Hugging Face API, for scripts that load, edit `norm_stats` and call `predict_action`.

`load(path)` gives model and processor; `AutoModelForVision2Seq` and `AutoProcessor` give each by itself, so that of a
script only an import changes. What an argument or method would mean is honoured, or refused by its name.
"""

from edge_vla.compat.loading import AutoModelForVision2Seq, AutoProcessor, load
from edge_vla.compat.model import Model
from edge_vla.compat.processor import Inputs, Processor

__all__ = ["AutoModelForVision2Seq", "AutoProcessor", "Inputs", "Model", "Processor", "load"]
