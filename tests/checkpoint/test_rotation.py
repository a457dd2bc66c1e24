"""A rotated checkpoint is the same network: R R^T = I, transformers' Llama and the original's tokens say so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import block_diag, hadamard

from edge_vla.bench.peers.llama import llama
from edge_vla.checkpoint import Checkpoint, key_table, open_checkpoint
from edge_vla.checkpoint.keys import DECODER_PREFIX
from edge_vla.checkpoint.rotation import RotatedTensors, Rotation
from edge_vla.runtime import Policy
from edge_vla.runtime.reference import load_reference
from edge_vla.spec import TINY, DecoderSpec
from tests.checkpoint.tensors import Tensors
from tests.conftest import TINY as TINY_SOURCE
from tests.golden.openvla_tiny import Case, cases

CPU = torch.device("cpu")
SIGNS = [-1, -1, -1, -1, -1, -1, 1, -1, -1, -1, 1, -1, 1, -1, -1, 1]  # of seed 0
SPECS = {  # widths that are a power of two and not, value heads of their own and shared
    "blocks of 32": DecoderSpec(vocab_rows=64, width=96, mlp_width=40, layers=2, heads=4, kv_heads=4),
    "grouped": DecoderSpec(vocab_rows=64, width=64, mlp_width=96, layers=2, heads=8, kv_heads=2),
}


@given(heads=st.integers(1, 3), width=st.integers(1, 96), rows=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_a_rotation_is_orthogonal(heads: int, width: int, rows: int, seed: int) -> None:
    """It is SciPy's Hadamard matrix in blocks behind signs, R R^T = I, and both sides take the same R."""
    turn = Rotation.draw(heads, width, f"label {seed}")
    block = hadamard(turn.block) / turn.block**0.5
    expected = torch.diag(turn.signs) @ torch.from_numpy(block_diag(*[block] * (heads * width // turn.block)))
    whole = turn.rows(torch.eye(heads * width, dtype=torch.float64))
    assert width % turn.block == 0
    assert (whole - expected).abs().max() < 1e-12
    assert (whole @ whole.T - torch.eye(heads * width)).abs().max() < 1e-12
    x = torch.randn(rows, heads * width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert (turn.columns(x.T) - turn.rows(x).T).abs().max() == 0
    assert (turn.rows(x) @ whole.T - x).abs().max() < 1e-12


def test_signs_are_the_seeds() -> None:
    """The bytes of every rotated export hang on these: they must not move."""
    drawn = Rotation.draw(1, 16, "edge-vla rotate 0 stream").signs
    assert drawn.tolist() == SIGNS
    assert not torch.equal(drawn, Rotation.draw(1, 16, "edge-vla rotate 1 stream").signs)


@pytest.mark.parametrize("name", SPECS)
def test_transformers_computes_the_same(name: str) -> None:
    """Logits of transformers' Llama from plain and from rotated tensors, with norms that are far from one."""
    plain = seeded(SPECS[name])
    turned = rotated(plain)
    ids = torch.randint(64, (2, 11), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = (llama(one, torch.float32, CPU)(ids).logits for one in (plain, turned))
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    for norm in (f"{DECODER_PREFIX}norm.weight", f"{DECODER_PREFIX}layers.1.input_layernorm.weight"):
        assert torch.equal(turned.tensors.load(norm), torch.ones(SPECS[name].width)), norm


@pytest.mark.parametrize("case", cases()[:3], ids=lambda case: case.name)
def test_the_whole_policy_gives_the_originals_tokens(golden_checkpoint: Path, case: Case) -> None:
    """Projector, embeddings and head turn with the decoder."""
    turned = rotated(open_checkpoint(golden_checkpoint))
    policy = Policy(load_reference(turned, torch.float32, CPU), turned.config, turned.tokenizer_json)
    action = policy.act(case.image, case.instruction, case.unnorm_key)
    assert action.tokens == tuple(case.token_ids)


def rotated(checkpoint: Checkpoint) -> Checkpoint:
    return replace(checkpoint, tensors=RotatedTensors(checkpoint.tensors, checkpoint.config.spec, seed=3))


def seeded(decoder: DecoderSpec) -> Checkpoint:
    """Matrices of variance 1 / fan-in, and norms between about a tenth and ten."""
    spec, generator = replace(TINY, decoder=decoder), torch.Generator().manual_seed(0)
    found = {}
    for name, key in key_table(spec).items():
        drawn = torch.randn(key.shape, generator=generator, dtype=torch.float64)
        norm = "norm" in name and name.endswith("weight")
        found[name] = (drawn.exp() if norm else drawn / key.shape[-1] ** 0.5).float()
    checkpoint = open_checkpoint(TINY_SOURCE)
    return replace(checkpoint, tensors=Tensors(found), config=replace(checkpoint.config, spec=spec))
