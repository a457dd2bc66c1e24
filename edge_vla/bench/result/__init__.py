"""What `edge-vla bench` measured, as types: one dataclass a phase. The JSON Schema is generated from these.

A field that was not measured is None, a list of nothing is empty; no figure hides in a name. Knows shapes of results;
knows nothing of how they are measured, written (`result_file.py`) or shown (`reports/`).
"""

# ruff: noqa: F403
from edge_vla.bench.result.agreement import *
from edge_vla.bench.result.closed_loop import *
from edge_vla.bench.result.performance import *
from edge_vla.bench.result.run import *
