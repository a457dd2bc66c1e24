"""Every way of rounding the demo decoder, measured on the same unseen frames: `python -m benchmarks.formats.methods`.

World 1; calibrated on the expert's episodes of the calibration split, judged teacher-forced on the policy's own of the
evaluation split, which neither training nor calibration has seen. Beside them stands the noise floor: bf16 itself with
its rounding shaken. `prefill rounded` is an artifact as it is, run by a kernel that rounds a prefill's rows to 8 bits;
teacher forcing puts the rows of the answer into the prefill too. Agreement alone: speed and closed loop belong to
`benchmarks.demo_policy.compare_formats`.
It may be stopped at any time: what is in `--work` is not done again by the same command.
"""

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.demo_policy import episodes
from benchmarks.formats.divergence import closed, divergence, forced_logits
from edge_vla.artifact import Artifact
from edge_vla.bench.distributions import leads
from edge_vla.bench.leakage import calibration_frames_among
from edge_vla.bench.provenance import environment
from edge_vla.bench.statistics import cluster_interval, paired_cluster_difference
from edge_vla.checkpoint import open_checkpoint
from edge_vla.data import Frame, read_frames
from edge_vla.data import episodes as episode_names
from edge_vla.demo import BASE
from edge_vla.errors import EdgeVLAError
from edge_vla.export import Recipe, export
from edge_vla.files import write_whole
from edge_vla.quant import stored_bytes
from edge_vla.runtime import load, rounding_noise
from edge_vla.runtime.cpu.native.library import library
from edge_vla.runtime.kernels import AUTO, NATIVE_INT8

LOG: Final = logging.getLogger("benchmarks.formats.methods")
WORLD: Final = 1
SPLITS: Final[tuple[tuple[str, episodes.Split], ...]] = (
    (f"world{WORLD}-policy", "evaluation"),
    (f"world{WORLD}-expert", "calibration"),
)
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
    "uint4": (Recipe(asymmetric=True), "int4"),
    "uint4 AWQ": (Recipe(asymmetric=True, method="awq"), "uint4"),
    "uint4 GPTQ": (Recipe(asymmetric=True, method="gptq"), "int4 GPTQ"),
}

ROUNDED: Final = {
    "int8": "int8, prefill rounded",
    "int4 GPTQ": "int4 GPTQ, prefill rounded",
}  # by the kernel NATIVE_INT8


class Judged:
    """The reference's answers to the frames, how far rounding alone moves them, and the answers of those judged."""

    def __init__(self, frames: Sequence[Frame], work: Path) -> None:
        self.frames, self.names, self.work = frames, episode_names(frames), work
        self.config = open_checkpoint(BASE).config
        self.truth = self.answers("reference", BASE)[0]
        self.best = self.truth.argmax(dim=-1)
        moved, _ = self.answers(FLOOR, BASE, shake=True)
        self.lead = leads(self.truth.numpy(), self.best.numpy())
        self.floor = float(np.percentile(np.abs(leads(moved.numpy(), self.best.numpy()) - self.lead), NOISE))
        self.kl: dict[str, NDArray[np.float64]] = {}
        self.same: dict[str, NDArray[np.bool_]] = {}
        self.rows = {FLOOR: self.row(FLOOR, moved, None)}

    def answers(
        self, name: str, path: Path, kernel: str = AUTO, *, shake: bool = False
    ) -> tuple[Tensor, dict[str, str]]:
        """Logits (frames, dims, bins) and the kernels that made them; from `work` if they are there."""
        kept = self.work / f"{name}, {len(self.frames)} frames.pt"
        if not kept.exists():
            policy = load(path, "cpu", kernel=kernel)
            with rounding_noise(policy.network, seed=0) if shake else nullcontext():
                logits = forced_logits(policy, self.frames)
            beside = kept.with_suffix(".partial")
            torch.save((logits, dict(policy.network.kernels)), beside)
            beside.replace(kept)
            LOG.info("%s: answered", name)
        found: tuple[Tensor, dict[str, str]] = torch.load(kept)
        return found

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

    def judge(self, name: str, directory: Path, against: str, kernel: str = AUTO) -> None:
        artifact, (logits, kernels) = Artifact(directory), self.answers(name, directory, kernel)
        linears = [linear for layer in artifact.manifest.layers for linear in layer.values()]
        stored = sum(stored_bytes(linear.scheme, linear.shape, linear.group) for linear in linears)
        self.rows[name] = {
            "recipe": dict(artifact.manifest.recipe),
            "bits_per_weight": round(8 * stored / sum(linear.shape[0] * linear.shape[1] for linear in linears), 4),
            "calibration_frames_among_these": calibration_frames_among(artifact, self.frames, self.config),
            "kernels": kernels,
            **self.row(name, logits, against),
        }
        LOG.info("%s: %s", name, json.dumps(self.rows[name]))


def measure(work: Path, limit: int | None) -> dict[str, Any]:
    """Export and judge every recipe."""
    frames, calibration = (
        read_frames(work / which) if (work / which).exists() else episodes.frames(name, which, work / which)
        for name, which in SPLITS
    )
    for name, (recipe, _) in RECIPES.items():
        if not (work / name).exists():
            export(BASE, work / name, recipe, (), calibration if recipe.calibrated else ())
            LOG.info("%s: exported", name)
    judged = Judged(frames[:limit], work)
    for name, (_, against) in RECIPES.items():
        judged.judge(name, work / name, against)
    for name, rounded in ROUNDED.items() if library() is not None else ():
        judged.judge(rounded, work / name, name, NATIVE_INT8)
    return {
        "version": 1,
        "kind": "rounding methods",
        "environment": environment(),
        "model": f"the demo policy, world {WORLD}",
        "frames": len(judged.frames),
        "episodes": len(set(judged.names)),
        "lead_floor": judged.floor,
        "rows": judged.rows,
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.formats.methods", description=__doc__)
    parser.add_argument("--limit", type=int, help="only the first so many frames")
    parser.add_argument("--work", type=Path, required=True, help="where frames, artifacts and answers are kept")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(words)
    logging.basicConfig(format="%(asctime)s %(message)s")
    LOG.setLevel(logging.INFO)
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    write_whole(given.out, json.dumps(measure(given.work, given.limit), indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"error: {error}")
