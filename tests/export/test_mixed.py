"""Mixed precision end to end: KL costs are as predicted, and narrow artifacts run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.formats.divergence import divergence, forced_logits, kl_reduction
from edge_vla.artifact import Artifact
from edge_vla.calibration.action_gradients import action_logits, backpropagate_, probe_gradients
from edge_vla.calibration.sequences import Rows, embed
from edge_vla.calibration.stream import STAGES, forward_, load_layer
from edge_vla.checkpoint import open_checkpoint
from edge_vla.data import Frame
from edge_vla.errors import UsageError
from edge_vla.export import Recipe, export
from edge_vla.export.formats import Format, candidates
from edge_vla.export.recipe import parse_bytes
from edge_vla.export.sensitivity import in_fold, int8_vision, measure, rounding_changes, vision_kl_cost
from edge_vla.export.sizes import fixed_bytes, vision_bytes
from edge_vla.quant import Scheme
from edge_vla.runtime import load
from edge_vla.sensitivity import SensitivityReport
from tests.conftest import TINY
from tests.export.crash import tiny_frames


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[Frame]:
    return tiny_frames(tmp_path_factory.mktemp("mixed") / "frames")


@pytest.fixture(scope="module")
def mixed(frames: list[Frame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = Recipe(method="gptq", bits_per_weight=3.4, calibration_frames=16)
    return export(TINY, tmp_path_factory.mktemp("mixed") / "out", recipe, frames=frames).directory


def report_of(directory: Path) -> SensitivityReport:
    report = SensitivityReport.read(directory)
    assert report is not None
    return report


def test_the_report_adds_up(mixed: Path) -> None:
    artifact, report = Artifact(mixed), report_of(mixed)
    assert artifact.manifest.version == 2
    for one in report.linears:
        linear = artifact.manifest.layers[one.layer][one.name]
        assert one.format == str(Format(linear.scheme, linear.group))
        cost = {choice.format: choice.kl_cost for choice in one.choices}
        assert cost["int2 g32"] > cost["int3 g32"] > cost["int4 g32"] > cost["int8"] > cost["bf16"] == 0
    assert len({one.format for one in report.linears}) > 1
    assert report.bits_per_weight <= 3.4
    assert report.linears_bytes_on_device >= report.linears_bytes
    assert report.linears_bytes == sum(one.chosen.bytes for one in report.linears)
    stored = sum((mixed / name).stat().st_size for name in artifact.manifest.files if name.startswith("decoder/"))
    assert report.linears_bytes < stored < report.linears_bytes * 1.2, "norms and headers besides"


def test_a_report_of_the_version_before_is_read(mixed: Path) -> None:
    """Version 2 as it was written: other names for the same numbers."""
    report = report_of(mixed)
    old = {
        **{name: getattr(report, name) for name in ("limit_bytes", "linears_bytes", "linears_bytes_on_device")},
        **{name: getattr(report, name) for name in ("bits_per_weight", "predicted_kl", "predicted_kl_mixed")},
        "version": 2,
        "predicted_kl_same": report.predicted_kl_uniform,
        "departures_kept": report.residual_kept,
        "vision": None,
        "linears": [
            {
                **{"layer": one.layer, "name": one.name, "weights": one.weights, "form": one.format},
                "choices": [
                    {"name": c.format, "size": c.bytes, "damage": c.kl_cost, "measured": c.measured_kl_cost}
                    for c in one.choices
                ],
            }
            for one in report.linears
        ],
        "pareto": [{"bytes": point.bytes, "damage": point.kl_cost} for point in report.pareto],
    }
    assert SensitivityReport.from_json(json.loads(json.dumps(old))) == report


@pytest.mark.parametrize("raw", [[], {}, {"version": 1}, {"version": 3}, {"version": 2, "linears": []}])
def test_what_is_no_report_is_refused(raw: object) -> None:
    with pytest.raises(ValueError, match=r"version|missing"):
        SensitivityReport.from_json(raw)


def test_narrow_linears_run_as_int4(mixed: Path, frames: list[Frame]) -> None:
    schemes = {linear.scheme for layer in Artifact(mixed).manifest.layers for linear in layer.values()}
    assert schemes & {Scheme.INT2, Scheme.INT3}
    packed = [linear.scheme for linears, _ in Artifact(mixed).layers() for linear in linears.values()]
    assert not set(packed) & {Scheme.INT2, Scheme.INT3}
    assert len(load(mixed, "cpu").act(frames[0].open(), frames[0].instruction).tokens) == 7


@pytest.mark.parametrize("bits", [3, 2])
def test_uniform_narrow_bits(bits: int, frames: list[Frame], tmp_path: Path) -> None:
    artifact = export(TINY, tmp_path / "out", Recipe(bits=bits))
    assert artifact.manifest.version == 2
    assert {linear.scheme.value for layer in artifact.manifest.layers for linear in layer.values()} == {f"int{bits}"}


def test_the_predicted_kl_cost_is_what_one_linear_causes(frames: list[Frame]) -> None:
    """Perturb one linear at a time and run what comes after: the second-order estimate lies near."""
    checkpoint = open_checkpoint(TINY)
    spec = checkpoint.config.spec.decoder
    layers = [load_layer(checkpoint.tensors, spec, index, torch.float32) for index in range(spec.layers)]
    rows = embed(checkpoint, frames, torch.float32)
    kept = []
    for layer in layers:
        kept.append([Rows(same.hidden.clone(), same.prompt, same.dims) for same in rows])
        forward_(layer, rows)
    truth = torch.cat([action_logits(checkpoint, same.hidden[:, -same.dims :]) for same in rows])
    gradients = probe_gradients(checkpoint, rows, seed=0, probes=24)
    uniform = [[torch.ones(1, same.length) for same in rows] for _ in STAGES]
    found = measure(layers[-1], kept[-1], gradients, uniform, None)
    folds = in_fold(rows, 0)
    half = [[mask.float()[:, None].expand(-1, same.length) for mask, same in zip(folds, rows, strict=True)]]
    changes = rounding_changes(layers[-1], kept[-1], half * len(STAGES), None)
    odd = ~torch.cat(folds)
    predicted, direct = [], []
    for name, shape in spec.linears().items():
        place = candidates(shape[1], None).index(Format(Scheme.INT4, 64))
        changed = load_layer(checkpoint.tensors, spec, spec.layers - 1, torch.float32)
        changed.get_parameter(f"{name}.weight").add_(changes[name][place])
        moved = [Rows(same.hidden.clone(), same.prompt, same.dims) for same in kept[-1]]
        forward_(changed, moved)
        logits = torch.cat([action_logits(checkpoint, same.hidden[:, -same.dims :]) for same in moved])
        predicted.append(found[name][0][place])
        direct.append(float(divergence(truth[odd], logits[odd]).mean()))
        assert direct[-1] / 2 < predicted[-1] < direct[-1] * 2, f"{name}: 8 sequences and 24 probes give so much"
    assert sum(predicted) == pytest.approx(sum(direct), rel=0.3)


def test_more_bits_agree_better(mixed: Path, frames: list[Frame], tmp_path: Path) -> None:
    wide = export(TINY, tmp_path / "out", Recipe(bits=8)).directory
    truth = forced_logits(load(TINY, "cpu"), frames)
    narrow, wider = (divergence(truth, forced_logits(load(path, "cpu"), frames)) for path in (mixed, wide))
    assert wider.mean() < narrow.mean()
    gone = kl_reduction(narrow, wider, [frame.episode or "" for frame in frames])
    assert 0 < gone.low <= gone.mean <= gone.high < 1


def test_divergence_of_a_policy_from_itself_is_zero() -> None:
    logits = torch.randn(5, 7, 64, generator=torch.Generator().manual_seed(0))
    assert not divergence(logits, logits).any()
    assert not divergence(logits, logits + 3).round(12).any(), "a shift of all logits changes no probability"


@pytest.mark.parametrize(
    ("text", "size"), [("4.2GB", 4_200_000_000), ("800 mb", 800_000_000), ("12", 12), ("1kB", 1000)]
)
def test_bytes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1e9", "0", "4GiB", "nan"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="expected bytes"):
        parse_bytes(text)


def test_the_towers_kl_cost_is_what_int8_towers_cause(frames: list[Frame]) -> None:
    checkpoint = open_checkpoint(TINY)
    spec = checkpoint.config.spec.decoder
    layers = [load_layer(checkpoint.tensors, spec, index, torch.float32) for index in range(spec.layers)]

    def kept(vision: Mapping[str, Tensor] | None) -> list[list[Rows]]:
        """Each layer's input, and the last one's output."""
        found = [embed(checkpoint, frames, torch.float32, vision=vision)]
        for layer in layers:
            moved = [Rows(same.hidden.clone(), same.prompt, same.dims) for same in found[-1]]
            forward_(layer, moved)
            found.append(moved)
        return found

    before, after = kept(None), kept(int8_vision(checkpoint))
    gradients = probe_gradients(checkpoint, before[-1], seed=0, probes=24)
    for layer, rows in zip(reversed(layers), reversed(before[:-1]), strict=True):
        backpropagate_(layer, rows, gradients, lambda *_: None)
    truth, moved = (
        torch.cat([action_logits(checkpoint, same.hidden[:, -same.dims :]) for same in rows[-1]])
        for rows in (before, after)
    )
    direct = float(divergence(truth, moved).mean())
    assert direct / 2 < vision_kl_cost(checkpoint, frames, gradients) < direct * 2


def test_a_budget_for_everything(frames: list[Frame], tmp_path: Path) -> None:
    """The bytes of int4 beside 16-bit towers: int8 towers cost little, so the decoder gets half of their bytes."""
    spec, form = open_checkpoint(TINY).config.spec, Format(Scheme.INT4, 64)
    linears = spec.decoder.layers * sum(form.bytes(shape) for shape in spec.decoder.linears().values())
    budget = linears + fixed_bytes(spec) + vision_bytes(spec, 16)
    recipe = Recipe(method="gptq", budget=budget, calibration_frames=16)
    artifact = export(TINY, tmp_path / "out", recipe, frames=frames)
    report = report_of(artifact.directory)
    assert report.vision is not None
    assert report.vision.bits == artifact.manifest.recipe.vision_bits == 8
    assert report.linears_bytes > linears
    assert report.linears_bytes + fixed_bytes(spec) + report.vision.chosen.bytes <= budget
    assert len(load(artifact.directory, "cpu").act(frames[0].open(), frames[0].instruction).tokens) == 7
