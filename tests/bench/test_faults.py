"""Faults planted in an artifact or its runtime: each must turn a gate red, and the sound artifact none."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edge_vla.artifact import HEAD, MANIFEST, VISION, Artifact
from edge_vla.bench import gates, predictions
from edge_vla.bench.agreement import About, compare, margin_floor
from edge_vla.bench.systems import Contestant
from edge_vla.bench.worker import Ours, Worker
from edge_vla.checkpoint import open_checkpoint
from edge_vla.checkpoint.keys import HEAD as HEAD_KEY
from edge_vla.demo import BASE
from edge_vla.demo.record import record
from edge_vla.demo.render import world
from edge_vla.demo.world import EVALUATION_SEEDS
from edge_vla.export import Recipe, export
from edge_vla.openvla import ActionTokens
from edge_vla.runtime.engine import StagedEngine

EPISODES = 8
# The golden frame sees these faults too, as near-ties under the margin that `damaged` gives it.
pytestmark = pytest.mark.filterwarnings("ignore::edge_vla.errors.EdgeVLAWarning")


class Judged:
    """The demo policy's reference, measured once in this process, and artifacts judged by it."""

    def __init__(self, root: Path) -> None:
        self.frames, self.root = root / "frames", root
        record(self.frames, None, world(1), EVALUATION_SEEDS[700_000 : 700_000 + EPISODES])
        self.artifact = export(BASE, root / "sound", Recipe(bits=16)).directory
        checkpoint = open_checkpoint(BASE)
        self.action, self.head = checkpoint.config.spec.action, checkpoint.tensors.load(HEAD_KEY)
        self.tokens = ActionTokens(self.action)
        worker = Worker(Contestant("reference", str(BASE)), self.frames, None)
        statistics = checkpoint.config.statistics
        keys = [statistics.resolve(frame.unnorm_key) for frame in worker.frames]
        self.about = About.of(worker.frames, [statistics[key] for key in keys])
        worker.answer(str(root / "reference.npz"), None, None)
        worker.answer(str(root / "shaken.npz"), str(root / "reference.npz"), gates.FLOOR)
        self.plain = self.side(root / "reference.npz")
        shaken = self.side(root / "shaken.npz")
        self.margin = margin_floor(self.plain, shaken)
        self.floor = compare(self.plain, shaken, self.about, self.tokens, self.margin)

    def side(self, path: Path) -> Any:
        return predictions.read_side(path, self.head, self.action)

    def red(self, artifact: Path, fault: Callable[[Worker], None] | None = None) -> set[str]:
        """Names of the red gates of an artifact, with a fault planted in its process."""
        # Torch's towers, whose answers are kept: C only lends them.
        worker = Worker(Contestant("candidate", str(artifact), vision="torch"), self.frames, None)
        if fault is not None:
            fault(worker)
        path = self.root / "candidate.npz"
        worker.answer(str(path), str(self.root / "reference.npz"), None)
        side = self.side(path)
        agreement = compare(self.plain, side, self.about, self.tokens, self.margin)
        agreement["units_off"] = predictions.units_off(path, side, self.tokens, self.about.statistics)
        row = {"name": "candidate", "artifact": {"bits_per_weight": 16.0}, "agreement": agreement}
        found = gates.judge({"floors": {gates.FLOOR: self.floor}, "candidates": [row]})
        assert len(found) >= 5, "a gate that is not judged catches nothing"
        return {gate["name"] for gate in found if gate["passed"] is False}


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    return Judged(tmp_path_factory.mktemp("faults"))


def damaged(judged: Judged, out: Path, change: Callable[[Path, dict[str, Any]], None]) -> Path:
    """A copy of the sound artifact with a change that its hashes and golden frames do not see."""
    shutil.copytree(judged.artifact, out)
    manifest = json.loads((out / MANIFEST).read_text())
    change(out, manifest)
    for name, entry in manifest["files"].items():
        content = (out / name).read_bytes()
        entry |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    for frame in manifest["golden"]:
        frame["noise"] = 1e9
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1))
    return Artifact(out).directory


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)


def test_a_sound_artifact_turns_no_gate_red(judged: Judged) -> None:
    assert judged.red(judged.artifact) == set()


def test_swapped_towers(judged: Judged, tmp_path: Path) -> None:
    """The projector reads the towers' features in the other order."""
    first = open_checkpoint(BASE).config.spec.towers[0].width

    def swap(out: Path, manifest: dict[str, Any]) -> None:
        def roll(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            name = "projector.fc1.weight"
            return {**tensors, name: torch.roll(tensors[name], first, dims=1)}

        rewrite(out / VISION, roll)

    assert "tokens" in judged.red(damaged(judged, tmp_path / "swapped", swap))


def test_a_shift_by_one_bin(judged: Judged, tmp_path: Path) -> None:
    def shift(out: Path, manifest: dict[str, Any]) -> None:
        rewrite(out / HEAD, lambda tensors: {**tensors, "actions": torch.roll(tensors["actions"], 1, dims=0)})

    assert {"tokens", "clear leads"} <= judged.red(damaged(judged, tmp_path / "shifted", shift))


@pytest.mark.parametrize("number", ["image mean", "q99"])
def test_a_wrong_normalisation_constant(judged: Judged, tmp_path: Path, number: str) -> None:
    def change(out: Path, manifest: dict[str, Any]) -> None:
        if number == "q99":
            next(iter(manifest["statistics"].values()))["action"]["q99"][0] *= 1.05
        else:
            manifest["preprocessing"]["means"][0][0] += 0.1

    red = judged.red(damaged(judged, tmp_path / "wrong", change))
    assert ("units" if number == "q99" else "tokens") in red


def test_a_stale_image(judged: Judged) -> None:
    """The first frame's image embeddings answer for every frame."""

    def freeze(worker: Worker) -> None:
        assert isinstance(worker.policy, Ours)
        network, kept = worker.policy.policy.network, list[torch.Tensor]()
        vision: Any = network.vision
        see = vision.forward

        def stale(pixels: torch.Tensor) -> torch.Tensor:
            if not kept:
                kept.append(see(pixels))
            return kept[0]

        vision.forward = stale

    assert "tokens" in judged.red(judged.artifact, freeze)


def test_an_answer_one_frame_late(judged: Judged) -> None:
    """Acting reads what the frame before left behind; teacher forcing, which keeps nothing, is sound."""

    def late(worker: Worker) -> None:
        original = worker.act
        worker.act = lambda index: original(max(0, index - 1))  # type: ignore[method-assign]

    assert "actions" in judged.red(judged.artifact, late)


def test_a_stale_cache(judged: Judged) -> None:
    """The keys and values of the first frame's image answer for every frame."""

    def freeze(worker: Worker) -> None:
        assert isinstance(worker.policy, Ours)
        engine, kept = worker.policy.policy.engine, list[Any]()
        assert isinstance(engine, StagedEngine)
        original = engine.decode

        def stale(prompt: Any, image: torch.Tensor, *rest: Any, **more: Any) -> Any:
            kept.append(image)
            return original(prompt, kept[0], *rest, **more)

        engine.decode = stale  # type: ignore[method-assign]

    assert "actions" in judged.red(judged.artifact, freeze)
