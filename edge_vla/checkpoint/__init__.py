"""Reading a policy's weights: Hugging Face directories, seeded random ones, adapters merged on the way."""

from edge_vla.checkpoint.keys import check_tensors, key_table
from edge_vla.checkpoint.lora import Adapter, Arithmetic, merge_adapters
from edge_vla.checkpoint.source import Checkpoint, open_checkpoint
from edge_vla.checkpoint.tensors import SafetensorsDirectory, TensorSource

__all__ = [
    "Adapter",
    "Arithmetic",
    "Checkpoint",
    "SafetensorsDirectory",
    "TensorSource",
    "check_tensors",
    "key_table",
    "merge_adapters",
    "open_checkpoint",
]
