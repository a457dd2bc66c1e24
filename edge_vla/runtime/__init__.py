"""RUN: artifact -> actions. Imports nothing from the build side."""

from edge_vla.runtime.golden import replay
from edge_vla.runtime.loading import load
from edge_vla.runtime.noise import rounding_noise
from edge_vla.runtime.policy import Policy, Stopwatch
from edge_vla.runtime.session import Session
from edge_vla.runtime.types import Action

__all__ = ["Action", "Policy", "Session", "Stopwatch", "load", "replay", "rounding_noise"]
