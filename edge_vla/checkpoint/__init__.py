"""Reading a policy's weights: Hugging Face directories, seeded random ones, adapters merged on the way."""

from edge_vla.checkpoint.folder import CONFIG
from edge_vla.checkpoint.keys import check_tensors, key_table
from edge_vla.checkpoint.lora import Adapter, merge_adapters
from edge_vla.checkpoint.lora_config import Arithmetic
from edge_vla.checkpoint.reading import Reading
from edge_vla.checkpoint.source import Checkpoint, diagnose, open_checkpoint, refuse
from edge_vla.checkpoint.tensors import SafetensorsDirectory, TensorSource

__all__ = [
    "CONFIG",
    "Adapter",
    "Arithmetic",
    "Checkpoint",
    "Reading",
    "SafetensorsDirectory",
    "TensorSource",
    "check_tensors",
    "diagnose",
    "key_table",
    "merge_adapters",
    "open_checkpoint",
    "refuse",
]
