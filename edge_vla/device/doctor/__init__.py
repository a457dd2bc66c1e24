"""RUN: `edge-vla doctor`. Every check of this machine and of one artifact on it; torch may be broken or absent."""

from edge_vla.device.doctor.check import Check, Found, Report, Verdict
from edge_vla.device.doctor.examine import GROUPS, examine
from edge_vla.device.doctor.system import System

__all__ = ["GROUPS", "Check", "Found", "Report", "System", "Verdict", "examine"]
