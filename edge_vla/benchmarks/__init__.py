"""Evidence: how far a candidate's tokens are from the reference's, how fast and how large both are."""

from edge_vla.benchmarks.bench import bench
from edge_vla.benchmarks.environment import environment
from edge_vla.benchmarks.report import markdown

__all__ = ["bench", "environment", "markdown"]
