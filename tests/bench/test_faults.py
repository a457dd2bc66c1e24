"""Faults planted in an artifact or its runtime: each must turn a gate red, and the sound artifact none."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edge_vla.artifact import HEAD, MANIFEST, VISION, Artifact
from edge_vla.bench import gates, predictions
from edge_vla.bench.agreement import Predictions, compare, margin_floor
from edge_vla.bench.messages import System
from edge_vla.bench.motion import FrameFacts
from edge_vla.bench.result import ROUNDING_NOISE
from edge_vla.bench.worker import OwnPolicy, Worker
from edge_vla.checkpoint import open_checkpoint
from edge_vla.checkpoint.keys import HEAD as HEAD_KEY
from edge_vla.demo import BASE
from edge_vla.demo.record import record
from edge_vla.demo.render import world
from edge_vla.demo.world import EVALUATION_SEEDS
from edge_vla.export import Recipe, export
from edge_vla.openvla import ActionTokens
from edge_vla.runtime.engine import StagedEngine
from tests.bench.sample_result import minimal_result

EPISODES = 8
# The golden frame sees these faults too, as near-ties under the margin that `damaged` gives it.
pytestmark = pytest.mark.filterwarnings("ignore::edge_vla.errors.EdgeVLAWarning")


class Bench:
    """The demo policy's reference, measured once in this process, and artifacts checked against it."""

    def __init__(self, root: Path) -> None:
        self.frames, self.root = root / "frames", root
        record(self.frames, None, world(1), EVALUATION_SEEDS[700_000 : 700_000 + EPISODES])
        self.artifact = export(BASE, root / "sound", Recipe(bits=16)).directory
        checkpoint = open_checkpoint(BASE)
        self.action, self.head = checkpoint.config.spec.action, checkpoint.tensors.load(HEAD_KEY)
        self.tokens = ActionTokens(self.action)
        worker = Worker(System("reference", str(BASE)), self.frames, None)
        statistics = checkpoint.config.statistics
        keys = [statistics.resolve(frame.unnorm_key) for frame in worker.frames]
        self.facts = FrameFacts.of(worker.frames, [statistics[key] for key in keys])
        worker.predict(str(root / "reference.npz"), None, None)
        worker.predict(str(root / "noise.npz"), str(root / "reference.npz"), ROUNDING_NOISE)
        self.plain = self.read(root / "reference.npz")
        noise = self.read(root / "noise.npz")
        self.margin = margin_floor(self.plain, noise)
        self.floor = compare(self.plain, noise, self.facts, self.tokens, self.margin)

    def read(self, path: Path) -> Predictions:
        return predictions.read(path, self.head, self.action)

    def red(self, artifact: Path, fault: Callable[[Worker], None] | None = None) -> set[str]:
        """Names of the red gates of an artifact, with a fault planted in its process."""
        # Torch's towers return new tensors, which a fault may keep; those in C return a buffer.
        worker = Worker(System("candidate", str(artifact), vision="torch"), self.frames, None)
        if fault is not None:
            fault(worker)
        path = self.root / "candidate.npz"
        worker.predict(str(path), str(self.root / "reference.npz"), None)
        own = self.read(path)
        result = minimal_result()
        row = result.candidates[0]
        row.artifact = replace(row.artifact, bits_per_weight=16.0)
        row.agreement = compare(self.plain, own, self.facts, self.tokens, self.margin)
        row.units_off = predictions.units_off(path, own, self.tokens, self.facts.statistics)
        result.floors = {ROUNDING_NOISE: self.floor}
        found = gates.check(result)
        assert len(found) >= 5, "a gate that is not checked catches nothing"
        return {gate.name for gate in found if gate.passed is False}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("faults"))


def damaged(bench: Bench, out: Path, change: Callable[[Path, dict[str, Any]], None]) -> Path:
    """A copy of the sound artifact with a change that its hashes and golden frames do not reveal."""
    shutil.copytree(bench.artifact, out)
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


def test_a_sound_artifact_turns_no_gate_red(bench: Bench) -> None:
    assert bench.red(bench.artifact) == set()


def test_swapped_towers(bench: Bench, tmp_path: Path) -> None:
    """The projector reads the towers' features in the other order."""
    first = open_checkpoint(BASE).config.spec.towers[0].width

    def swap(out: Path, manifest: dict[str, Any]) -> None:
        def roll(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            name = "projector.fc1.weight"
            return {**tensors, name: torch.roll(tensors[name], first, dims=1)}

        rewrite(out / VISION, roll)

    assert "teacher-forced tokens" in bench.red(damaged(bench, tmp_path / "swapped", swap))


@pytest.mark.slow
def test_a_shift_by_one_bin(bench: Bench, tmp_path: Path) -> None:
    def shift(out: Path, manifest: dict[str, Any]) -> None:
        rewrite(out / HEAD, lambda tensors: {**tensors, "actions": torch.roll(tensors["actions"], 1, dims=0)})

    assert {"teacher-forced tokens", "high-margin flips"} <= bench.red(damaged(bench, tmp_path / "shifted", shift))


@pytest.mark.parametrize("number", ["image mean", "q99"])
@pytest.mark.slow
def test_a_wrong_normalisation_constant(bench: Bench, tmp_path: Path, number: str) -> None:
    def change(out: Path, manifest: dict[str, Any]) -> None:
        if number == "q99":
            next(iter(manifest["statistics"].values()))["action"]["q99"][0] *= 1.05
        else:
            manifest["preprocessing"]["means"][0][0] += 0.1

    red = bench.red(damaged(bench, tmp_path / "wrong", change))
    assert ("robot units" if number == "q99" else "teacher-forced tokens") in red


@pytest.mark.slow
def test_a_stale_image(bench: Bench) -> None:
    """The first frame's image embeddings are used for every frame."""

    def freeze(worker: Worker) -> None:
        assert isinstance(worker.policy, OwnPolicy)
        network, kept = worker.policy.policy.network, list[torch.Tensor]()
        vision: Any = network.vision
        see = vision.forward

        def stale(pixels: torch.Tensor) -> torch.Tensor:
            if not kept:
                kept.append(see(pixels))
            return kept[0]

        vision.forward = stale

    assert "teacher-forced tokens" in bench.red(bench.artifact, freeze)


@pytest.mark.slow
def test_an_action_one_frame_late(bench: Bench) -> None:
    """Acting reads what the frame before left behind; teacher forcing, which keeps nothing, is sound."""

    def late(worker: Worker) -> None:
        original = worker.act
        worker.act = lambda index: original(max(0, index - 1))  # type: ignore[method-assign]

    assert "free-running tokens" in bench.red(bench.artifact, late)


@pytest.mark.slow
def test_a_stale_cache(bench: Bench) -> None:
    """The keys and values of the first frame's image are used for every frame."""

    def freeze(worker: Worker) -> None:
        assert isinstance(worker.policy, OwnPolicy)
        engine, kept = worker.policy.policy.engine, list[Any]()
        assert isinstance(engine, StagedEngine)
        original = engine.decode

        def stale(prompt: Any, image: torch.Tensor, *rest: Any, **more: Any) -> Any:
            kept.append(image)
            return original(prompt, kept[0], *rest, **more)

        engine.decode = stale  # type: ignore[method-assign]

    assert "free-running tokens" in bench.red(bench.artifact, freeze)
