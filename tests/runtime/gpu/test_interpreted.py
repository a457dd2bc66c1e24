"""The whole engine on Triton's kernels, in its interpreter, beside the same engine on the references."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from edge_vla.artifact import TOKENIZER, Artifact
from edge_vla.export import Recipe, export
from edge_vla.runtime.gpu.config import Activations, Steps
from edge_vla.runtime.gpu.load import from_artifact
from edge_vla.runtime.policy import Policy
from tests.conftest import TINY
from tests.runtime.gpu.engines import CPU, WORDS, engine, guess, pixels, policy

DIMS = 3  # the interpreter is slow
CLEAR = 0.05  # logits: twice what rounding moves a margin of these networks

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="here the kernels are compiled: see test_on_device"),
]


@pytest.fixture(scope="module")
def artifacts(tiny_artifacts: Mapping[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, Path]:
    """With int8 towers where the decoder is not in 16 bits."""
    root = tmp_path_factory.mktemp("interpreted")
    small = {bits: export(TINY, root / str(bits), Recipe(bits=bits, vision_bits=8)).directory for bits in (4, 8)}
    return {**small, 16: tiny_artifacts[16]}


@pytest.mark.parametrize(
    ("bits", "activations", "steps"),
    [(4, "16", "chain"), (4, "8", "auto"), (8, "8", "chain"), (16, "16", "chain"), (4, "16", "persistent")],
)
def test_the_references_tokens_and_no_bit_from_a_draft(
    bits: int, activations: Activations, steps: Steps, artifacts: Mapping[int, Path]
) -> None:
    artifact = Artifact(artifacts[bits])
    fast = from_artifact(artifact, torch.bfloat16, CPU, "triton", activations, steps=steps)
    made = Policy(fast, artifact.manifest.config, artifact.text(TOKENIZER))
    slow = policy(artifacts[bits], activations=activations)
    prompt = made.prompter(WORDS[0])
    got = engine(made).decide(prompt, pixels(made, 0), DIMS)
    expected = engine(slow).decide(prompt, pixels(made, 0), DIMS)
    differing = [
        margin for one, two, margin in zip(got.tokens, expected.tokens, expected.margins, strict=True) if one != two
    ]
    assert not differing or differing[0] < CLEAR
    first = made.config.spec.action.first
    draft = [got.tokens[0] - first, *[0] * (DIMS - 1)]
    drafted = engine(made).decide(prompt, pixels(made, 0), DIMS, guess(draft), bitwise_exact=True)
    assert (drafted.tokens, drafted.margins) == (got.tokens, got.margins)
    assert fast.network.kernels["engine"].startswith("triton")
