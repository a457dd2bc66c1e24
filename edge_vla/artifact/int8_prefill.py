"""Whether rows of 8 bits in a prefill were measured to keep an artifact's policy: what `auto` goes by on the CPU.

A bench of `native/int8` writes it beside the artifact, with the gates' verdict; it speaks for those very weights alone.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Final

from edge_vla import typed_json
from edge_vla.artifact.manifest import EVIDENCE
from edge_vla.artifact.reader import Artifact
from edge_vla.files import write_whole

FILE: Final = f"{EVIDENCE}/int8-prefill.json"


@dataclass(frozen=True)
class Int8Prefill:
    """A bench's verdict on an artifact under `native/int8`.

    `passed`: every gate of agreement is green. Shares are those of teacher-forced tokens equal to the reference's, with
    their 95 % interval, and what rounding noise alone leaves equal.
    """

    artifact: str  # `Artifact.identity`
    passed: bool
    frames: int
    tokens: float
    tokens_low: float
    tokens_high: float
    noise_floor: float
    gates: dict[str, bool | None]

    @property
    def why(self) -> str:
        if self.passed:
            return f"all gates of agreement green on {self.frames} frames"
        short = [
            f"{name} {'undecided' if passed is None else 'red'}" for name, passed in self.gates.items() if not passed
        ]
        return f"{', '.join(short) or 'a gate was not measured'} on {self.frames} frames"


def read(artifact: Artifact) -> Int8Prefill | None:
    """None where nothing was measured, or something else was: other weights, a file that this version cannot read."""
    try:
        raw = typed_json.parse((artifact.directory / FILE).read_bytes())
        found = typed_json.from_json(Int8Prefill, raw, FILE, ignore_unknown=True)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if found.artifact == artifact.identity else None


def write(artifact: Artifact, verdict: Int8Prefill) -> None:
    """In place of an earlier one. OSError or ResourceError where the artifact's directory cannot be written."""
    path = artifact.directory / FILE
    path.parent.mkdir(exist_ok=True)
    write_whole(path, json.dumps(dataclasses.asdict(verdict), indent=1) + "\n")
