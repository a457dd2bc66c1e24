"""RUN: artifact -> actions. Imports nothing from the build side."""

from edge_vla.threads import settle

settle()  # before the first import of torch, if this is it

from edge_vla.runtime.loop import Stopwatch  # noqa: E402
from edge_vla.runtime.policy import Action, Policy, load, replay  # noqa: E402
from edge_vla.runtime.session import Session  # noqa: E402
from edge_vla.runtime.shake import shaken  # noqa: E402

__all__ = ["Action", "Policy", "Session", "Stopwatch", "load", "replay", "shaken"]
