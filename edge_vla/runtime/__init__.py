"""RUN: artifact -> actions. Imports nothing from the build side."""

from edge_vla.runtime.loop import Stopwatch
from edge_vla.runtime.policy import Action, Policy, load, replay
from edge_vla.runtime.session import Session
from edge_vla.runtime.shake import shaken

__all__ = ["Action", "Policy", "Session", "Stopwatch", "load", "replay", "shaken"]
