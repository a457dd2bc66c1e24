"""Every method end to end on the tiny policy: what the artifact says, how it acts, and that it can be resumed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.formats.divergence import divergence, forced_logits
from edge_vla.artifact import EVIDENCE, Artifact
from edge_vla.calibration.inputs import Inputs, observe
from edge_vla.calibration.sequences import Rows
from edge_vla.calibration.stream import STAGES, Weights, forward_, load_layer
from edge_vla.checkpoint import open_checkpoint
from edge_vla.data import Frame
from edge_vla.export import Recipe, Silent, export
from edge_vla.export.journal import JOURNAL
from edge_vla.model.decoder import DecoderLayer
from edge_vla.quant import Scheme
from edge_vla.runtime import load
from edge_vla.runtime.kernels.w8a8 import CpuW8A8
from tests.conftest import TINY
from tests.export.crash import tiny_frames

RECIPES = {
    "smoothquant": Recipe(bits=8, method="smoothquant", calibration_frames=12),
    "smoothquant+gptq": Recipe(bits=8, method="smoothquant+gptq", calibration_frames=12),
    "w8a8": Recipe(bits=8, activations=8),
    "awq": Recipe(method="awq", calibration_frames=12),
    "uint4": Recipe(asymmetric=True),
    "uint4 awq": Recipe(method="awq", asymmetric=True, calibration_frames=12),
}


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[Frame]:
    return tiny_frames(tmp_path_factory.mktemp("frames") / "frames")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, frames: Sequence[Frame]) -> dict[str, Artifact]:
    root = tmp_path_factory.mktemp("made")
    return {
        name: export(TINY, root / name.replace(" ", "-"), recipe, (), frames if recipe.calibrated else ())
        for name, recipe in RECIPES.items()
    }


@pytest.mark.parametrize(
    ("name", "scheme", "version"),
    [
        ("smoothquant", Scheme.W8A8, 3),
        ("smoothquant+gptq", Scheme.W8A8, 3),
        ("w8a8", Scheme.W8A8, 3),
        ("awq", Scheme.INT4, 1),
        ("uint4", Scheme.UINT4, 3),
        ("uint4 awq", Scheme.UINT4, 3),
    ],
)
def test_the_manifest_says_what_it_is(
    name: str, scheme: Scheme, version: int, made: dict[str, Artifact], frames: Sequence[Frame]
) -> None:
    """Written, read back, hashed, and acting with its golden frame as it did when it was made."""
    artifact = Artifact(made[name].directory)
    artifact.verify()
    assert {linear.scheme for layer in artifact.manifest.layers for linear in layer.values()} == {scheme}
    assert artifact.manifest.version == version
    assert artifact.manifest.recipe.activations == (8 if scheme is Scheme.W8A8 else None)
    assert artifact.manifest.recipe.asymmetric == (scheme is Scheme.UINT4)
    policy = load(artifact.directory, "cpu")
    action = policy.act(frames[0].open(), frames[0].instruction, "random")
    assert action.kernels[scheme.value] not in ("", "reference"), "each has a fast one"


@pytest.mark.parametrize("name", ["smoothquant", "smoothquant+gptq", "awq", "uint4 awq"])
def test_scales_are_recorded(name: str, made: dict[str, Artifact]) -> None:
    found = json.loads((made[name].directory / EVIDENCE / "scales.json").read_text(encoding="utf-8"))
    assert len(found) == len(made[name].manifest.layers)
    for layer in found:
        assert list(layer) == [names[0] for names in STAGES]
        for choice in layer.values():
            assert 0 < choice["error"] <= 1, "no scaling is among what is tried"


def test_scaling_alone_changes_nothing_but_rounding(made: dict[str, Artifact], frames: Sequence[Frame]) -> None:
    """Moved scales leave the policy where int8 leaves it: answers as near to the reference's as int8's own step."""
    truth = forced_logits(load(TINY, "cpu", dtype="fp32"), frames)
    near = {name: divergence(truth, forced_logits(load(made[name].directory, "cpu"), frames)) for name in made}
    assert near["smoothquant"].mean() < 0.02 * near["uint4"].mean()
    assert near["w8a8"].mean() < 0.02 * near["uint4"].mean()


def test_the_reference_kernel_acts_alike(made: dict[str, Artifact], frames: Sequence[Frame]) -> None:
    """The whole network on the slow product: for int8 activations the same bits, as the sums are whole."""
    kernels = ("torch-int-mm", "reference", "auto")
    fast, slow, ours = (load(made["smoothquant"].directory, "cpu", kernel=kernel) for kernel in kernels)
    for frame in frames[:3]:
        truth = forced_logits(slow, [frame])
        assert torch.equal(forced_logits(fast, [frame]), truth)
        assert divergence(truth, forced_logits(ours, [frame])).max() < 1e-3, "norms and attention round elsewhere in C"


def test_calibration_goes_on_with_what_will_run(
    tmp_path: Path, frames: Sequence[Frame], made: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second layer is smoothed for just what the artifact's own first layer gives it, int8 products and all."""
    seen: list[list[Rows]] = []

    def spy(layer: DecoderLayer, rows: Sequence[Rows], weights: Sequence[Weights], what: str) -> list[Inputs]:
        seen.append([Rows(same.hidden.clone(), same.prompt, same.dims) for same in rows])
        return observe(layer, rows, weights, what)

    monkeypatch.setattr("edge_vla.export.calibrated.observe", spy)
    recipe = RECIPES["smoothquant"]
    again = export(TINY, tmp_path / "again", recipe, (), frames)
    assert again.identity == made["smoothquant"].identity
    first, second = seen
    checkpoint = open_checkpoint(TINY)
    layer = load_layer(checkpoint.tensors, checkpoint.config.spec.decoder, 0, torch.bfloat16)
    packed, norms = next(again.layers())
    for name, weight in packed.items():
        layer.set_submodule(name, CpuW8A8(weight, torch.bfloat16, torch.device("cpu")))
    for name, norm in norms.items():
        layer.get_parameter(name).copy_(norm)
    forward_(layer, first)
    for ours, theirs in zip(first, second, strict=True):
        assert torch.equal(ours.hidden, theirs.hidden)


class StopsAfterALayer(Silent):
    """Presses Ctrl-C when the first rounded layer is finished."""

    def __init__(self) -> None:
        self.rounding = False

    def stage(self, name: str, steps: int, done: int = 0) -> None:
        self.rounding = name == "decoder"

    def step(self, detail: str) -> None:
        if self.rounding:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["smoothquant", "uint4 awq"])
def test_a_stopped_export_resumes_to_the_same_bits(
    name: str, tmp_path: Path, frames: Sequence[Frame], made: dict[str, Artifact]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        export(TINY, out, RECIPES[name], (), frames, StopsAfterALayer())
    assert not out.exists()
    artifact = export(TINY, out, RECIPES[name], (), frames)
    assert artifact.identity == made[name].identity
    whole, resumed = (one.directory / EVIDENCE / "scales.json" for one in (made[name], artifact))
    assert resumed.read_bytes() == whole.read_bytes(), "what was found before the stop is recorded too"
    lines = [json.loads(line) for line in (out / JOURNAL).read_text(encoding="utf-8").splitlines()[1:]]
    units = [(line["unit"], line["data"]["layer"]) for line in lines]
    assert len(set(units)) == len(units), "nothing was done twice"
