"""Every way of rounding the demo policy's decoder, judged on the same unseen frames: `python -m edge_vla.demo.methods`.

World 1; calibrated on the expert's episodes of the calibration split, judged teacher-forced on the policy's own of the
evaluation split, which neither training nor calibration has seen. Beside them stands the noise floor: bf16 itself with
its rounding shaken. Agreement alone: speed and closed loop belong to `edge_vla.demo.judge`.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_vla.artifact import Artifact
from edge_vla.benchmarks.distributions import leads
from edge_vla.benchmarks.environment import environment
from edge_vla.benchmarks.seen import calibration_frames_among
from edge_vla.benchmarks.statistics import cluster_interval, paired_cluster_difference
from edge_vla.calibration.judge import closed, divergence, forced_logits
from edge_vla.demo import BASE, episodes
from edge_vla.errors import EdgeVLAError
from edge_vla.export import Recipe, export
from edge_vla.files import write_whole
from edge_vla.frames import Frame
from edge_vla.frames import episodes as episode_names
from edge_vla.quant import stored_bytes
from edge_vla.runtime import load, shaken

LOG: Final = logging.getLogger("edge_vla.demo.methods")
WORLD: Final = 1
NOISE: Final = 99  # percentile of what rounding does to a lead
PERCENTILES: Final = ("p50", "p90", "p99", "max")
TAILS: Final = (0.5, 0.9, 0.99, 1.0)
FLOOR: Final = "bf16, rounding shaken"
RECIPES: Final[Mapping[str, tuple[Recipe, str]]] = {  # and the name of what each is compared with
    "int8": (Recipe(bits=8), FLOOR),
    "w8a8": (Recipe(bits=8, activations=8), "int8"),
    "w8a8 GPTQ": (Recipe(bits=8, activations=8, method="gptq"), "w8a8"),
    "w8a8 SmoothQuant": (Recipe(bits=8, method="smoothquant"), "w8a8"),
    "w8a8 SmoothQuant, GPTQ": (Recipe(bits=8, method="smoothquant+gptq"), "w8a8 SmoothQuant"),
    "int4": (Recipe(), "int8"),
    "int4 clipped": (Recipe(method="awq", alpha=0.0), "int4"),
    "int4 AWQ": (Recipe(method="awq"), "int4"),
    "int4 GPTQ": (Recipe(method="gptq"), "int4"),
    "int4 AWQ, GPTQ": (Recipe(method="awq+gptq"), "int4 GPTQ"),
    "uint4": (Recipe(asymmetric=True), "int4"),
    "uint4 AWQ": (Recipe(asymmetric=True, method="awq"), "uint4"),
    "uint4 GPTQ": (Recipe(asymmetric=True, method="gptq"), "int4 GPTQ"),
    "uint4 AWQ, GPTQ": (Recipe(asymmetric=True, method="awq+gptq"), "uint4 GPTQ"),
}


class Judged:
    """The reference's answers to the frames, how far rounding alone moves them, and the answers of those judged."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames, self.names = frames, episode_names(frames)
        reference = load(BASE, "cpu")
        self.config = reference.config
        self.truth = forced_logits(reference, frames)
        self.best = self.truth.argmax(dim=-1)
        with shaken(reference.network, seed=0):
            moved = forced_logits(reference, frames)
        self.lead = leads(self.truth.numpy(), self.best.numpy())
        self.floor = float(np.percentile(np.abs(leads(moved.numpy(), self.best.numpy()) - self.lead), NOISE))
        self.kl: dict[str, NDArray[np.float64]] = {}
        self.same: dict[str, NDArray[np.bool_]] = {}
        self.rows = {FLOOR: self.row(FLOOR, moved, None)}

    def row(self, name: str, logits: Tensor, against: str | None) -> dict[str, Any]:
        """What is told of one side; shares and divergences with 95 % intervals over episodes."""
        best, clear = logits.argmax(dim=-1), self.lead > self.floor
        self.same[name] = same = (best == self.best).numpy()
        self.kl[name] = divergence(self.truth, logits)
        found: dict[str, Any] = {
            "same_token": cluster_interval(same.mean(axis=1), self.names, same.shape[1]).to_json(),
            "within_one_bin": float(((best - self.best).abs() <= 1).double().mean()),
            "kl": cluster_interval(self.kl[name], self.names).to_json(),
            "kl_of_frames": dict(zip(PERCENTILES, np.quantile(self.kl[name], TAILS).tolist(), strict=True)),
            "clear_leads": int(clear.sum()),
            "clear_leads_flipped": int((clear & ~same).sum()),
        }
        if against is not None:
            part, low, high = closed(self.kl[against], self.kl[name], self.names)
            found["against"] = {
                "name": against,
                "kl_closed": {"mean": part, "low": low, "high": high},
                "same_token_difference": paired_cluster_difference(self.same[against], same, self.names).to_json(),
            }
        return found

    def judge(self, name: str, directory: Path, against: str) -> None:
        artifact, policy = Artifact(directory), load(directory, "cpu")
        linears = [linear for layer in artifact.manifest.layers for linear in layer.values()]
        stored = sum(stored_bytes(linear.scheme, linear.shape, linear.group) for linear in linears)
        self.rows[name] = {
            "recipe": dict(artifact.manifest.recipe),
            "bits_per_weight": round(8 * stored / sum(linear.shape[0] * linear.shape[1] for linear in linears), 4),
            "calibration_frames_among_these": calibration_frames_among(artifact, self.frames, self.config),
            "kernels": dict(policy.network.kernels),
            **self.row(name, forced_logits(policy, self.frames), against),
        }
        LOG.info("%s: %s", name, json.dumps(self.rows[name]))


def measure(scratch: Path, limit: int | None) -> dict[str, Any]:
    """Export and judge every recipe."""
    frames = episodes.frames(f"world{WORLD}-policy", "evaluation", scratch / "evaluation")[:limit]
    calibration = episodes.frames(f"world{WORLD}-expert", "calibration", scratch / "calibration")
    judged = Judged(frames)
    for name, (recipe, against) in RECIPES.items():
        out = scratch / name
        export(BASE, out, recipe, (), calibration if recipe.calibrated else ())
        judged.judge(name, out, against)
    return {
        "version": 1,
        "kind": "rounding methods",
        "environment": environment(),
        "model": f"the demo policy, world {WORLD}",
        "frames": len(frames),
        "episodes": len(set(judged.names)),
        "lead_floor": judged.floor,
        "rows": judged.rows,
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m edge_vla.demo.methods", description=__doc__)
    parser.add_argument("--limit", type=int, help="only the first so many frames")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(words)
    logging.basicConfig(format="%(asctime)s %(message)s")
    LOG.setLevel(logging.INFO)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="edge-vla-methods-") as scratch:
        found = measure(Path(scratch), given.limit)
    write_whole(given.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"error: {error}")
