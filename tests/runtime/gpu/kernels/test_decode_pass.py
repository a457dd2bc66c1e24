"""A pass through all layers in one kernel: bit for bit the chain of kernels, whatever programs share the work."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.kernel_checks.check import RandomInputs
from edge_vla.errors import BackendError
from edge_vla.model.decoder import rotary_tables
from edge_vla.quant import Scheme
from edge_vla.runtime.gpu.kernels import activations, decode_pass, pass_attention, rms_norm, w4a16, w8, w16
from edge_vla.runtime.gpu.kernels.decode_pass import PassLayer, PassNetwork
from edge_vla.runtime.gpu.kernels.decode_phases import _spoil
from edge_vla.runtime.gpu.kernels.language import jit, tl
from edge_vla.runtime.gpu.kernels.tiles import Tile
from edge_vla.runtime.gpu.kernels.weights import Int4Weight, Int8Weight, Rows, Weight, repack_int4, repack_int8
from edge_vla.spec import TINY

SPEC = TINY.decoder
WIDTH, KV_WIDTH, MLP = SPEC.width, SPEC.kv_width, SPEC.mlp_width
SHAPES = ((WIDTH + 2 * KV_WIDTH, WIDTH), (WIDTH, WIDTH), (2 * MLP, WIDTH), (WIDTH, MLP))
TILES = [Tile(32, 8, 128, 8, 2, splits=splits) for splits in (1, 2, 2, 3)]
START, LENGTH = 70, 96


def weight(inputs: RandomInputs, bits: int, n: int, k: int) -> Weight:
    if bits == 4:
        return repack_int4(inputs.packed(Scheme.INT4, n, k, 32))
    return repack_int8(inputs.packed(Scheme.INT8, n, k)) if bits == 8 else inputs.rows(n, k) * k**-0.5


def network(inputs: RandomInputs, bits: tuple[int, ...]) -> PassNetwork:
    """A layer for each of `bits`."""
    layers = []
    for width in bits:
        qkv, o_proj, gate_up, down_proj = (weight(inputs, width, n, k) for n, k in SHAPES)
        layers.append(PassLayer((qkv, o_proj, gate_up, down_proj), (inputs.rows(WIDTH), inputs.rows(WIDTH))))
    positions = torch.arange(LENGTH, device=inputs.device)[None]
    cos, sin = (table[0, 0].contiguous() for table in rotary_tables(SPEC, positions, inputs.dtype))
    scratch = pass_attention.Scratch.allocate(SPEC.heads, SPEC.head_width, inputs.device)
    return PassNetwork.make(layers, inputs.rows(WIDTH), SPEC.norm_eps, cos, sin, scratch)


def chain(x: Tensor, made: PassNetwork, start: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The stand-alone kernels with the same tiles."""

    def times(rows: Rows, one: Weight, tile: Tile) -> Tensor:
        assert isinstance(rows, Tensor)
        if isinstance(one, Int4Weight):
            return w4a16.kernel_gemv(rows, one, tile)
        return w8.kernel_a16_gemv(rows, one, tile) if isinstance(one, Int8Weight) else w16.kernel_gemv(rows, one, tile)

    stream, added = x, None
    for index, layer in enumerate(made.layers):
        stream, normed = rms_norm.kernel(stream, added, layer.norms[0], made.eps)
        qkv = times(normed, layer.products[0], TILES[0])
        cache = keys[index], values[index]
        mixed = pass_attention.kernel(qkv, made.cos, made.sin, start, *cache, made.scratch)
        output = times(mixed, layer.products[1], TILES[1])
        stream, normed = rms_norm.kernel(stream, output, layer.norms[1], made.eps)
        gated = activations.kernel_swiglu(times(normed, layer.products[2], TILES[2]), x.dtype)
        added = times(gated, layer.products[3], TILES[3])
    hidden = rms_norm.kernel(stream, added, made.norm, made.eps)[1]
    assert isinstance(hidden, Tensor)
    return hidden


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_the_chains_bits(bits: int, dtype: torch.dtype, device: torch.device) -> None:
    inputs = RandomInputs.seeded(bits, device, dtype)
    made, x = network(inputs, (bits, bits)), inputs.rows(6, WIDTH)
    keys, values = (inputs.rows(2, SPEC.kv_heads, LENGTH, SPEC.head_width) for _ in range(2))
    start = torch.tensor([START], dtype=torch.int32, device=device)
    ours, theirs, plain = ((keys.clone(), values.clone()) for _ in range(3))
    got = decode_pass.kernel(x, made, start, *ours, TILES, programs=3)
    expected = chain(x, made, start, *theirs)
    reference = decode_pass.reference(x, made, start, *plain)
    bound = 2**-5 * float(reference.abs().max())  # a few roundings of a type with eight bits
    torch.testing.assert_close(got, reference, rtol=0, atol=bound)
    if device.type == "cuda":  # compiled apart, sums of squares and products round in another order
        torch.testing.assert_close(got, expected, rtol=0, atol=bound)
        assert made.barrier[1] == 0
        return
    assert torch.equal(got, expected)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert torch.equal(decode_pass.kernel(x, made, start, *ours, TILES, programs=1), got)
    assert torch.equal(decode_pass.kernel(x[:2].contiguous(), made, start, *ours, TILES), got[:2])


def test_layers_that_differ_are_refused(device: torch.device) -> None:
    with pytest.raises(BackendError, match="layer 1's products are"):
        network(RandomInputs.seeded(0, device, torch.bfloat16), (4, 8))


def test_after_waits_in_vain_the_chain_has_its_tickets(device: torch.device) -> None:
    """Phases that overlapped may leave some; nothing else clears them."""
    made = network(RandomInputs.seeded(0, device, torch.bfloat16), (8,))
    made.barrier.fill_(1)
    made.scratch.tickets.fill_(2)
    assert made.gave_up()
    assert not made.gave_up()
    assert not made.scratch.tickets.any()


@jit
def _one_after_another(barrier: tl.tensor, normed: tl.tensor, ended: tl.tensor, rows: tl.tensor) -> None:
    """Each program but the first writes the row once those before it have ended, as a late norm for all does."""
    me, column = tl.program_id(0), tl.arange(0, 16)
    while tl.atomic_add(ended, 0) < me:
        pass
    tl.store(normed + column, tl.zeros([16], tl.float32), mask=column < me * 16)
    _spoil(barrier, normed, rows, 16, 8)
    tl.debug_barrier()
    tl.atomic_add(ended, 1)


def test_a_late_norm_leaves_no_number(device: torch.device) -> None:
    for gave_up in (0, 1):
        barrier, ended = torch.tensor([0, gave_up], device=device), torch.zeros(1, dtype=torch.int32, device=device)
        normed = torch.ones(1, 16, device=device)
        _one_after_another[(3,)](barrier, normed, ended, 1)
        assert bool(normed.isnan().any()) == bool(gave_up)
