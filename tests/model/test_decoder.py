"""The decoder against transformers' Llama as an independent oracle, and against itself without a cache."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from edge_vla.model import Cache, Decoder
from edge_vla.spec import OPENVLA_7B, TINY, DecoderSpec

CPU = torch.device("cpu")
# One layer at the true width of the 7B, and a small one whose key and value heads are shared.
SPECS = {
    "tiny": TINY.decoder,
    "grouped": DecoderSpec(vocab_rows=64, width=64, mlp_width=96, layers=2, heads=8, kv_heads=2),
    "one layer of the 7B": DecoderSpec(vocab_rows=32, layers=1),
}


def seeded(spec: DecoderSpec, dtype: torch.dtype = torch.float32) -> Decoder:
    torch.manual_seed(0)
    return Decoder(spec).to(dtype).eval().requires_grad_(False)


def oracle(decoder: Decoder) -> LlamaModel:
    spec = decoder.spec
    config = LlamaConfig(
        vocab_size=spec.vocab_rows,
        hidden_size=spec.width,
        intermediate_size=spec.mlp_width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        rms_norm_eps=spec.norm_eps,
        max_position_embeddings=spec.max_positions,
    )
    model = LlamaModel(config)
    model.load_state_dict(decoder.state_dict())
    return model.to(decoder.norm.weight.dtype).eval()


@pytest.mark.parametrize("name", SPECS)
def test_hidden_states_equal_transformers(name: str) -> None:
    decoder = seeded(SPECS[name])
    x = torch.randn(2, 13, decoder.spec.width)
    cache = Cache.allocate(decoder.spec, 2, 20, torch.float32, CPU)
    with torch.inference_mode():
        ours = decoder(x, torch.arange(13).expand(2, 13), cache)
        theirs = oracle(decoder)(inputs_embeds=x).last_hidden_state
    # Different summation orders in float32; a wrong epsilon or rotation moves these by far more.
    assert (ours - theirs).abs().max() < 2e-5


def test_bf16_is_as_exact_as_transformers() -> None:
    """Our bf16 error against float64 is at most twice that of transformers' bf16."""
    spec = TINY.decoder
    low, high = seeded(spec, torch.bfloat16), seeded(spec).double()
    high.load_state_dict({name: value.double() for name, value in low.state_dict().items()})
    x = torch.randn(1, 9, spec.width).bfloat16()
    positions = torch.arange(9)[None]
    with torch.inference_mode():
        truth = high(x.double(), positions, Cache.allocate(spec, 1, 12, torch.float64, CPU))
        ours = low(x, positions, Cache.allocate(spec, 1, 12, torch.bfloat16, CPU))
        theirs = oracle(low)(inputs_embeds=x).last_hidden_state
    error, allowed = (ours.double() - truth).abs().max(), 2 * (theirs.double() - truth).abs().max()
    assert error <= allowed


@pytest.mark.parametrize("name", ["tiny", "grouped"])
def test_steps_over_the_cache_equal_one_pass(name: str) -> None:
    decoder = seeded(SPECS[name])
    x = torch.randn(1, 12, decoder.spec.width)
    with torch.inference_mode():
        whole = decoder(x, torch.arange(12)[None], Cache.allocate(decoder.spec, 1, 16, torch.float32, CPU))
        cache = Cache.allocate(decoder.spec, 1, 16, torch.float32, CPU)
        parts = [decoder(x[:, :8], torch.arange(8)[None], cache)]
        parts += [decoder(x[:, i : i + 1], torch.tensor([[i]]), cache) for i in range(8, 12)]
    assert (torch.cat(parts, dim=1) - whole).abs().max() < 1e-5


def test_padding_and_stale_cache_are_invisible() -> None:
    decoder = seeded(TINY.decoder)
    x = torch.randn(1, 7, decoder.spec.width)
    clean = Cache.allocate(decoder.spec, 1, 20, torch.float32, CPU)
    dirty = Cache(torch.randn_like(clean.keys), torch.randn_like(clean.values))
    padded = torch.nn.functional.pad(x, (0, 0, 0, 9))
    with torch.inference_mode():
        expected = decoder(x, torch.arange(7)[None], clean)
        got = decoder(padded, torch.arange(16)[None], dirty)[:, :7]
    assert (got - expected).abs().max() < 1e-6


def test_rows_of_a_batch_may_stand_at_different_positions() -> None:
    decoder = seeded(TINY.decoder)
    x = torch.randn(2, 6, decoder.spec.width)
    step = torch.randn(2, 1, decoder.spec.width)
    positions = torch.tensor([[6], [4]])
    with torch.inference_mode():
        cache = Cache.allocate(decoder.spec, 2, 8, torch.float32, CPU)
        decoder(x, torch.arange(6).expand(2, 6), cache)
        together = decoder(step, positions, cache)
        for row in range(2):
            own = Cache.allocate(decoder.spec, 1, 8, torch.float32, CPU)
            decoder(x[row : row + 1], torch.arange(6)[None], own)
            alone = decoder(step[row : row + 1], positions[row : row + 1], own)
            assert (together[row] - alone[0]).abs().max() < 1e-5


def test_epsilon_is_not_llama_2s() -> None:
    assert OPENVLA_7B.decoder.norm_eps == 1e-6
