"""What number formats keep of the demo policy: `python -m benchmarks.formats.compare methods --work DIR --out FILE`.

`methods` compares every quantisation method; `bits` asks what a bit budget buys; `rotate` what rotated weights do, and
`rotate-loud`, `-turned` and `-massive` the same where outliers were planted (`benchmarks.formats.outliers`). World 1:
calibrated on the expert's episodes of the calibration split; measured teacher-forced on the policy's own episodes of
the evaluation split, which neither training nor calibration has used. The first row is the noise floor: bf16 with its
rounding perturbed. Agreement only: `benchmarks.demo_policy.compare_formats` measures speed and closed loop. What is in
`--work` is not made again.
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import study
from benchmarks.demo_policy import episodes
from benchmarks.formats.divergence import divergence, forced_logits, kl_reduction
from benchmarks.formats.outliers import loudness, plant
from benchmarks.formats.recipes import QUESTIONS, ROUNDED, Case
from benchmarks.formats.results import FLOOR, BitsSpent, Comparison, FormatRow, FormatsResult
from edge_vla.artifact import Artifact
from edge_vla.bench.distributions import margins
from edge_vla.bench.leakage import calibration_leakage
from edge_vla.bench.statistics import cluster_interval, paired_cluster_difference
from edge_vla.checkpoint import open_checkpoint
from edge_vla.data import Frame, read_frames
from edge_vla.data import episodes as episode_names
from edge_vla.demo import BASE
from edge_vla.export import export
from edge_vla.quant import stored_bytes
from edge_vla.runtime import Policy, load, rounding_noise
from edge_vla.runtime.cpu.native.decoder import NativeDecoder
from edge_vla.runtime.cpu.native.library import library
from edge_vla.runtime.kernels import AUTO, NATIVE, NATIVE_INT8
from edge_vla.sensitivity import SensitivityReport

LOG: Final = logging.getLogger("benchmarks.formats.compare")
WORLD: Final = 1
SPLITS: Final[tuple[tuple[str, episodes.Split], ...]] = (
    (f"world{WORLD}-policy", "evaluation"),
    (f"world{WORLD}-expert", "calibration"),
)
NOISE_PERCENTILE: Final = 99  # of what rounding does to a margin
PERCENTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


class Comparer:
    """The reference's logits on the frames, the noise floor, and a row for each format added."""

    def __init__(self, source: Path, frames: Sequence[Frame], work: Path) -> None:
        self.frames, self.episodes, self.work = frames, episode_names(frames), work
        self.config = open_checkpoint(source).config
        self.reference = self._logits("reference", source)[0]
        self.best = self.reference.argmax(dim=-1)
        noisy, kernels = self._logits(FLOOR, source, noise=True)
        self.margins = margins(self.reference.numpy(), self.best.numpy())
        moved = np.abs(margins(noisy.numpy(), self.best.numpy()) - self.margins)
        self.margin_floor = float(np.percentile(moved, NOISE_PERCENTILE))
        self.kl: dict[str, NDArray[np.float64]] = {}
        self.same: dict[str, NDArray[np.bool_]] = {}
        self.rows = [self._row(FLOOR, noisy, kernels, None, None)]

    def add(self, name: str, directory: Path, against: str, kernel: str = AUTO, first_row: Path | None = None) -> None:
        """Measure an artifact; `against` names an earlier row, `first_row` an artifact that lends its first row."""
        logits, kernels = self._logits(name, directory, kernel, first_row=first_row)
        self.rows.append(self._row(name, logits, kernels, against, directory))
        LOG.info("%s: %s", name, self.rows[-1])

    def _logits(
        self, name: str, path: Path, kernel: str = AUTO, *, noise: bool = False, first_row: Path | None = None
    ) -> tuple[Tensor, dict[str, str]]:
        """Logits (frames, dims, bins) and the kernels that made them; from `work` if they are there."""
        kept = self.work / f"{name}, {len(self.frames)} frames.pt"
        if not kept.exists():
            policy = load(path, "cpu", kernel=kernel, check=first_row is None)  # a check would fill the cache
            if first_row is not None:
                native(policy).first_row = native(load(first_row, "cpu", kernel=NATIVE, check=False)).first_row
            with rounding_noise(policy.network, seed=0) if noise else nullcontext():
                logits = forced_logits(policy, self.frames)
            beside = kept.with_suffix(".partial")
            torch.save((logits, dict(policy.network.kernels)), beside)
            beside.replace(kept)
        found: tuple[Tensor, dict[str, str]] = torch.load(kept)
        return found

    def _row(
        self, name: str, logits: Tensor, kernels: dict[str, str], against: str | None, directory: Path | None
    ) -> FormatRow:
        best, high = logits.argmax(dim=-1), self.margins > self.margin_floor
        self.same[name] = same = (best == self.best).numpy()
        self.kl[name] = kl = divergence(self.reference, logits)
        artifact = None if directory is None else Artifact(directory)
        return FormatRow(
            name=name,
            recipe=None if artifact is None else artifact.manifest.recipe.to_json(),
            bits_per_weight=None if artifact is None else _bits_per_weight(artifact),
            stored_bytes=None if artifact is None else sum(r.size for r in artifact.manifest.files.values()),
            calibration_leakage=None if artifact is None else self._leakage(artifact),
            kernels=kernels,
            same_token=cluster_interval(same.mean(axis=1), self.episodes, same.shape[1]),
            within_one_bin=float(((best - self.best).abs() <= 1).double().mean()),
            kl=cluster_interval(kl, self.episodes),
            kl_percentiles={label: float(np.quantile(kl, share)) for label, share in PERCENTILES.items()},
            high_margin_tokens=int(high.sum()),
            high_margin_flips=int((high & ~same).sum()),
            against=None if against is None else self._comparison(name, against),
            spent=None if directory is None else _spent(directory),
        )

    def _comparison(self, name: str, against: str) -> Comparison:
        return Comparison(
            name=against,
            kl_reduction=kl_reduction(self.kl[against], self.kl[name], self.episodes),
            same_token_difference=paired_cluster_difference(self.same[against], self.same[name], self.episodes),
        )

    def _leakage(self, artifact: Artifact) -> int | None:
        return calibration_leakage(artifact, self.frames, self.config)


def _bits_per_weight(artifact: Artifact) -> float:
    linears = [linear for layer in artifact.manifest.layers for linear in layer.values()]
    stored = sum(stored_bytes(linear.scheme, linear.shape, linear.group) for linear in linears)
    return round(8 * stored / sum(linear.shape[0] * linear.shape[1] for linear in linears), 4)


def _spent(directory: Path) -> BitsSpent | None:
    report = SensitivityReport.read(directory)
    if report is None:
        return None
    return BitsSpent(
        bits_per_weight=report.bits_per_weight,
        predicted_kl=report.predicted_kl,
        predicted_kl_mixed=report.predicted_kl_mixed,
        predicted_kl_uniform=report.predicted_kl_uniform,
        residual_kept=report.residual_kept,
        vision_bits=report.vision.bits if report.vision else None,
        formats={f"{linear.layer} {linear.name}": linear.format for linear in report.linears},
    )


def compare(question: str, work: Path, limit: int | None) -> FormatsResult:
    """Export and measure every recipe of a question, on the first `limit` frames."""
    frames, calibration = (
        read_frames(work / which) if (work / which).exists() else episodes.frames(name, which, work / which)
        for name, which in SPLITS
    )
    asked, source, model = QUESTIONS[question], BASE, f"the demo policy, world {WORLD}"
    if asked.planted is not None:
        work = work / question
        source = plant(asked.planted, BASE, work / "source", calibration)
        stream, read = loudness(open_checkpoint(source), calibration)
        model += (
            f", outliers planted ({asked.planted}): {stream:.0f} times the median in the stream, {read:.0f} in inputs"
        )
    cases = asked.cases(open_checkpoint(source).config.spec)
    _export(source, cases, work, calibration)
    comparer = Comparer(source, frames[:limit], work)
    for name, case in cases.items():
        comparer.add(name, work / name, case.against)
    for name in asked.rounded if library() is not None else ():
        comparer.add(name + ROUNDED, work / name, name, NATIVE_INT8)
    for name, lends in asked.first_row.items() if library() is not None else ():
        directory, kernel = work / name.removesuffix(ROUNDED), NATIVE_INT8 if name.endswith(ROUNDED) else NATIVE
        comparer.add(f"{name}, first row in 16 bits", directory, name, kernel, work / lends)
    return FormatsResult(
        question=question,
        model=model,
        frames=len(comparer.frames),
        episodes=len(set(comparer.episodes)),
        margin_floor=comparer.margin_floor,
        rows=comparer.rows,
    )


def native(policy: Policy) -> NativeDecoder:
    decoder = policy.network.decoder
    assert isinstance(decoder, NativeDecoder), f"expected the C decoder, got {decoder}"
    return decoder


def _export(source: Path, cases: Mapping[str, Case], work: Path, calibration: Sequence[Frame]) -> None:
    for name, case in cases.items():
        if not (work / name).exists():
            export(source, work / name, case.recipe, (), calibration if case.recipe.calibrated else ())
            LOG.info("%s: exported", name)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.formats.compare", description=__doc__)
    parser.add_argument("question", choices=list(QUESTIONS))
    parser.add_argument("--limit", type=int, help="only the first so many frames")
    parser.add_argument("--work", type=Path, required=True, help="directory for frames, artifacts and logits")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    study.write_result(given.out, compare(given.question, given.work, given.limit))


if __name__ == "__main__":
    study.run(main)
