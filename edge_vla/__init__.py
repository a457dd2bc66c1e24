"""edge-vla: put OpenVLA on a robot. `edge_vla.load(path)` opens an artifact or a checkpoint as a policy."""

__version__ = "0.1.0"
