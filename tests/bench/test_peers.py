"""Peers: transformers' Llama acts as the reference, quantised ones stay near it, and a missing package is named."""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import edge_vla
from edge_vla.bench import peers
from edge_vla.bench.messages import System
from edge_vla.bench.peers.policy import PeerPolicy
from edge_vla.bench.worker import load_system
from edge_vla.data import synthetic_image
from edge_vla.demo import BASE
from edge_vla.errors import BackendError, NumericError, UsageError
from tests.conftest import TINY
from tests.golden.openvla_tiny import Case, cases

TEXT = "put the red block on the blue pad"
TRANSFORMERS = pytest.mark.parametrize("name", ["hf-bf16", "hf-sdpa"])
BITSANDBYTES = pytest.mark.parametrize(("name", "least"), [("bnb-nf4", 0.8), ("bnb-int8", 0.9)])


@pytest.fixture(scope="module")
def demo() -> edge_vla.Policy:
    return edge_vla.load(BASE, "cpu", dtype="fp32", head="full")


def forced_logits(peer: PeerPolicy, image: Any, instruction: str, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Action logits (dims, bins) along `tokens`."""
    logits: NDArray[np.float32] = peer.action_logits(peer.forced(image, instruction, tokens)).numpy()
    return logits


@TRANSFORMERS
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_the_golden_policy(name: str, case: Case, golden_checkpoint: Path) -> None:
    peer = peers.load(name, golden_checkpoint, device="cpu", dtype="fp32")
    action = peer.act(case.image, case.instruction, case.unnorm_key)
    assert action.tokens == tuple(case.token_ids)
    assert np.array_equal(action.values, case.action)
    logits = forced_logits(peer, case.image, case.instruction, case.token_ids)
    assert logits.dtype == np.float32
    assert np.abs(logits - case.logits).max() < 1e-3


@TRANSFORMERS
def test_the_demo_policy(name: str, demo: edge_vla.Policy) -> None:
    peer = peers.load(name, BASE, device="cpu", dtype="fp32")
    for seed in range(4):
        image = synthetic_image(seed, 112)
        ours, theirs = demo.act(image, TEXT), peer.act(image, TEXT)
        assert theirs.tokens == ours.tokens
        assert theirs.margins == pytest.approx(ours.margins, abs=1e-3)
        expected = demo.network.head.logits(demo.forced(image, TEXT, ours.tokens)).numpy()
        assert np.abs(forced_logits(peer, image, TEXT, ours.tokens) - expected).max() < 1e-3


def test_the_loop_is_what_generate_does() -> None:
    peer = peers.load("hf-bf16", BASE, device="cpu")
    llama: Any = peer.llama
    for seed in range(4):
        image = synthetic_image(seed, 112)
        tokens = peer.act(image, TEXT).tokens
        with torch.inference_mode():
            rows = peer.sequence(peer.prompter(TEXT), peer.embed_image(image))
            given = torch.ones(rows.shape[:2], dtype=torch.long)
            theirs = llama.generate(inputs_embeds=rows, attention_mask=given, max_new_tokens=len(tokens))
        assert tuple(theirs[0].tolist()) == tokens


def test_what_an_action_carries() -> None:
    peer = peers.load("hf-sdpa", BASE, device="cpu")
    action = peer.act(synthetic_image(0, 112), TEXT)
    assert list(action.timing_ms) == ["preprocess", "vision", "prefill", "decode", "detokenise", "total"]
    stages = [value for stage, value in action.timing_ms.items() if stage != "total"]
    assert sum(stages) == pytest.approx(action.timing_ms["total"])
    assert action.kernels == {"decoder": "hf-sdpa", "vision": "torch", "arithmetic": "bfloat16", "device": "cpu"}
    reference = edge_vla.load(BASE, "cpu").network.weight_bytes
    # A little more: the frequencies that transformers keeps.
    assert list(peer.weight_bytes.values())[:3] == pytest.approx(list(reference.values())[:3], rel=1e-4)
    assert not any(action.clipped)


def test_adapters_are_merged() -> None:
    from edge_vla.demo import ADAPTER

    plain = peers.load("hf-sdpa", BASE, device="cpu", dtype="fp32")
    tuned = peers.load("hf-sdpa", BASE, [ADAPTER], device="cpu", dtype="fp32")
    reference = edge_vla.load(BASE, "cpu", dtype="fp32", adapters=[ADAPTER])
    image = synthetic_image(0, 112)
    assert tuned.act(image, TEXT).tokens == reference.act(image, TEXT).tokens
    assert not np.array_equal(forced_logits(plain, image, TEXT, [200]), forced_logits(tuned, image, TEXT, [200]))


class Always(nn.Module):
    """A head with the same logits for every row."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(*hidden.shape[:-1], -1)


def with_head(logits: torch.Tensor) -> PeerPolicy:
    peer = peers.load("hf-sdpa", TINY, device="cpu", dtype="fp32")
    peer.llama.set_submodule("lm_head", Always(logits))
    return peer


def test_an_early_end_reaches_back_into_the_prompt_as_upstream_does() -> None:
    spec = edge_vla.load(TINY, "cpu").config.spec.decoder
    peer = with_head(torch.eye(spec.vocab_rows)[spec.eos])
    action = peer.act(synthetic_image(0, 28), TEXT)
    prompt = peer.prompter(TEXT)
    assert action.tokens == (*prompt[len(prompt) + 1 - len(action.tokens) :], spec.eos)
    assert all(action.clipped)


def test_a_non_finite_number_is_no_action() -> None:
    rows = edge_vla.load(TINY, "cpu").config.spec.decoder.vocab_rows
    with pytest.raises(NumericError):
        with_head(torch.full((rows,), torch.nan)).act(synthetic_image(0, 28), TEXT)


def test_an_unknown_peer() -> None:
    with pytest.raises(UsageError, match="bnb-nf4"):
        peers.load("tensorrt", BASE)


@pytest.mark.parametrize(("name", "package"), [("bnb-nf4", "bitsandbytes"), ("gptqmodel", "gptqmodel")])
def test_a_missing_package(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(BackendError, match=f"pip install .*{package}"):
        peers.load(name, BASE, device="cpu")
    assert peers.versions() == {}


def test_an_old_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "4.40.1")
    with pytest.raises(BackendError, match=r"got 4\.40\.1: pip install 'transformers>="):
        peers.load("hf-bf16", BASE, device="cpu")


def test_a_package_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(package: str) -> object:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(BackendError, match=r"torchvision::nms.*pip check"):
        peers.load("hf-bf16", BASE, device="cpu")


def test_naming_peers_imports_none() -> None:
    script = (
        "import sys; from edge_vla.bench import peers; assert all(one.description for one in peers.PEERS.values())\n"
        "print([name for name in ('torch', 'transformers', 'bitsandbytes', 'gptqmodel') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@BITSANDBYTES
def test_bitsandbytes_stays_near_the_reference(name: str, least: float, demo: edge_vla.Policy) -> None:
    pytest.importorskip("bitsandbytes")
    peer = peers.load(name, BASE, device="cpu")
    images = [synthetic_image(seed, 112) for seed in range(8)]
    tokens = [demo.act(image, TEXT).tokens for image in images]
    first = demo.config.spec.action.first
    forced = [forced_logits(peer, *pair).argmax(-1) + first for pair in zip(images, [TEXT] * 8, tokens, strict=True)]
    assert (np.stack(forced) == np.array(tokens)).mean() >= least
    assert peer.weight_bytes["decoder"] < 0.6 * demo.network.weight_bytes["decoder"] / 2


def test_gptqmodel_stays_near_the_reference(demo: edge_vla.Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gptqmodel")
    from edge_vla.bench.peers import gptq

    monkeypatch.setattr(gptq, "FRAMES", 16)
    peer = peers.load("gptqmodel", BASE, device="cpu")
    images = [synthetic_image(seed, 112) for seed in range(8)]
    tokens = [demo.act(image, TEXT).tokens for image in images]
    first = demo.config.spec.action.first
    forced = [forced_logits(peer, *pair).argmax(-1) + first for pair in zip(images, [TEXT] * 8, tokens, strict=True)]
    assert (np.stack(forced) == np.array(tokens)).mean() >= 0.8
    assert peer.weight_bytes["decoder"] < 0.3 * demo.network.weight_bytes["decoder"] / 2


def test_a_peer_that_calibrates_is_given_its_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gptqmodel itself lives in another environment: what reaches it is seen here, what it does in benchmarks."""
    given: list[Any] = []
    monkeypatch.setattr("edge_vla.bench.peers.gptq.gptq", lambda *arguments: given.append(arguments[3]))
    for folder in (None, tmp_path):
        load_system(System("x", TINY, device="cpu", peer="gptqmodel", calibration=str(folder) if folder else None))
    assert given == [None, tmp_path]
    engine = peers.PEERS["gptqmodel"]
    assert engine.described(None).endswith("calibrated on synthetic images")
    assert engine.described(tmp_path / "mine").endswith("calibrated on mine")
    assert peers.PEERS["bnb-nf4"].described(tmp_path) == peers.PEERS["bnb-nf4"].description
