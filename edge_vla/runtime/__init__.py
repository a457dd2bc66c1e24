"""RUN: artifact -> actions. Imports nothing from the build side."""

from edge_vla.runtime.decode import Stopwatch
from edge_vla.runtime.noise import rounding_noise
from edge_vla.runtime.policy import Action, Policy, load, replay
from edge_vla.runtime.session import Session

__all__ = ["Action", "Policy", "Session", "Stopwatch", "load", "replay", "rounding_noise"]
