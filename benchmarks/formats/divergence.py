"""How far an artifact's action distribution is from its reference's, frame by frame, on the same tokens.

    python -m benchmarks.formats.divergence REFERENCE ARTIFACT [ARTIFACT …] --frames DIR --out FILE

Teacher-forced: both see the recorded action's tokens, so that one early difference does not hide the rest. The
benchmark suite judges a policy in full; this is the one number that bits are spent by.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_vla.artifact import Artifact
from edge_vla.bench.distributions import kl
from edge_vla.calibration.sequences import action_tokens
from edge_vla.data import Frame, episodes, read_frames
from edge_vla.errors import EdgeVLAError, UsageError
from edge_vla.files import write_whole
from edge_vla.runtime import Policy, load

LOG: Final = logging.getLogger("benchmarks.formats.divergence")
RESAMPLES: Final = 2000
INTERVAL: Final = (0.025, 0.975)


def forced_logits(policy: Policy, frames: Sequence[Frame]) -> Tensor:
    """(frames, dims, bins) float32: the action logits, the recorded action's earlier tokens given."""
    found = []
    for frame in frames:
        hidden = policy.forced(frame.open(), frame.instruction, action_tokens(frame, policy.config))
        found.append(policy.network.head.logits(hidden))
    return torch.stack(found)


def divergence(reference: Tensor, other: Tensor) -> NDArray[np.float64]:
    """(frames, dims, bins) logits of both -> (frames,) KL(reference, other) in nats, the mean over dimensions."""
    ours, theirs = reference.float().numpy(), other.float().numpy()
    found: NDArray[np.float64] = np.mean([kl(ours[:, dim], theirs[:, dim]) for dim in range(ours.shape[1])], axis=0)
    return found


def closed(
    before: NDArray[np.float64], after: NDArray[np.float64], names: Sequence[str], seed: int = 0
) -> tuple[float, float, float]:
    """The part of `before`'s mean that `after` closes, and its 95 % interval over episodes, paired."""
    index = {name: number for number, name in enumerate(sorted(set(names)))}
    which = np.array([index[name] for name in names])
    first, second = np.bincount(which, before), np.bincount(which, after)
    drawn = np.random.default_rng(seed).integers(0, len(index), (RESAMPLES, len(index)))
    low, high = np.quantile(1 - second[drawn].sum(axis=1) / first[drawn].sum(axis=1), INTERVAL)
    return 1 - float(after.mean() / before.mean()), float(low), float(high)


def judge(reference: str, artifacts: Sequence[Path], frames: Sequence[Frame]) -> dict[str, Any]:
    """Each artifact's divergence, how often its best token is the reference's, and what it closes of the first's."""
    truth = forced_logits(load(reference, "cpu"), frames)
    names, rows, first = episodes(frames), {}, None
    for path in artifacts:
        logits = forced_logits(load(path, "cpu"), frames)
        found = divergence(truth, logits)
        first = found if first is None else first
        row: dict[str, Any] = {
            "kl": float(found.mean()),
            "same_token": float((logits.argmax(dim=-1) == truth.argmax(dim=-1)).double().mean()),
            "decoder_bytes": sum(
                entry["size"] for name, entry in Artifact(path).manifest.files.items() if name.startswith("decoder/")
            ),
        }
        if first is not found:
            row["closed_of_first"] = dict(zip(("part", "low", "high"), closed(first, found, names), strict=True))
        rows[path.name] = row
        LOG.info("%s: %s", path.name, row)
    return {"frames": len(frames), "episodes": len(set(names)), "artifacts": rows}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.formats.divergence", description=__doc__)
    parser.add_argument("reference")
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--frames", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if len({path.name for path in arguments.artifacts}) < len(arguments.artifacts):
        raise UsageError("two artifacts of one name: rename one")
    found = judge(arguments.reference, arguments.artifacts, read_frames(arguments.frames))
    write_whole(arguments.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"{type(error).__name__}: {error}")
