"""The fused and the native decoder against the plain one: the same to rounding, whatever the shape of a pass."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from edge_vla.model import Cache, Decoder
from edge_vla.model.decoder import DecoderLayer
from edge_vla.quant import GROUPED, PackedWeight, Scheme, dequantise, quantise
from edge_vla.runtime.cpu.assemble import Assembly, CpuDecoder
from edge_vla.runtime.cpu.fused import FusedDecoder
from edge_vla.runtime.cpu.native.decoder import NativeDecoder
from edge_vla.runtime.cpu.native.gemm import NativeHead
from edge_vla.runtime.cpu.native.library import library
from edge_vla.runtime.cpu.native.steps import NativeSteps
from edge_vla.runtime.cpu.native.targets import runnable
from edge_vla.runtime.parts import fuse
from edge_vla.spec import TINY, DecoderSpec, PolicySpec

CPU = torch.device("cpu")
NEEDS_COMPILER = pytest.mark.skipif(library() is None, reason="no C compiler here")
KERNELS = pytest.mark.parametrize("kernel", ["torch", pytest.param("native", marks=NEEDS_COMPILER)])
EVERY_TARGET = pytest.mark.parametrize("target", [target.name for target in runnable()])
SPECS = {
    "tiny": TINY.decoder,
    "grouped": DecoderSpec(vocab_rows=64, width=64, mlp_width=96, layers=2, heads=8, kv_heads=2),
}


def pair(
    spec: DecoderSpec,
    scheme: Scheme = Scheme.BF16,
    dtype: torch.dtype = torch.bfloat16,
    mixed: bool = False,
    kernel: str = "torch",
) -> tuple[Decoder, CpuDecoder]:
    """A decoder in plain torch with the weights that the codes stand for, and a fast one made of the codes."""
    torch.manual_seed(0)
    plain = Decoder(spec, embeddings=False)
    whole: PolicySpec = dataclasses.replace(TINY, decoder=spec)
    made = list[tuple[dict[str, PackedWeight], dict[str, Tensor]]]()
    for layer in plain.layers:
        assert isinstance(layer, DecoderLayer)
        packed: dict[str, PackedWeight] = {}
        for name in spec.linears():
            other = mixed and name.endswith("k_proj")
            linear = layer.get_submodule(name)
            assert isinstance(linear, torch.nn.Linear)
            packed[name] = quantise(
                linear.weight.detach(),
                Scheme.INT8 if other else scheme,
                32 if scheme in GROUPED and not other else None,
            )
            linear.weight.data = dequantise(packed[name])
        norms: dict[str, Tensor] = {
            "input_layernorm.weight": layer.input_layernorm.weight,
            "post_attention_layernorm.weight": layer.post_attention_layernorm.weight,
        }
        for norm in norms.values():
            norm.data.uniform_(0.5, 1.5)
        made.append((packed, norms))
    assembly = Assembly(whole, dtype, CPU, [packed for packed, _ in made], kernel)
    layers = [assembly.layer(index, *parts) for index, parts in enumerate(made)]
    fast = assembly.decoder(layers, plain.norm.weight)
    return plain.to(dtype).eval().requires_grad_(False), fast


def run(decoder: Decoder | CpuDecoder, x: Tensor, prompt: int) -> Tensor:
    """A prefill of `prompt` rows, then one row at a time, and the last two in one pass over a longer cache."""
    rows = x.shape[1]
    cache: Any = decoder.cache(rows + 5)
    with torch.inference_mode():
        parts = [decoder.rows(x[:, :prompt], 0, cache.first(prompt)).clone()]
        for at in range(prompt, rows - 2):
            parts.append(decoder.rows(x[:, at : at + 1], at, cache.first(at + 1)).clone())
        parts.append(decoder.rows(x[:, rows - 2 :], rows - 2, cache))
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_equal_to_the_plain_decoder(name: str, dtype: torch.dtype) -> None:
    plain, fast = pair(SPECS[name], dtype=dtype)
    x = torch.randn(1, 21, plain.spec.width, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours, theirs = run(fast, x, 16).float(), run(plain, x, 16).float()
    # Attention may add in another order; a wrong rotation, mask or slot moves these by far more.
    assert (ours - theirs).abs().max() <= (2**-6 if dtype == torch.bfloat16 else 1e-5) * theirs.abs().max()


@NEEDS_COMPILER
@EVERY_TARGET
@pytest.mark.parametrize("scheme", [Scheme.BF16, Scheme.INT8, Scheme.INT4])
@pytest.mark.parametrize("name", SPECS)
def test_native_is_as_exact_as_the_plain_decoder(name: str, scheme: Scheme, target: str) -> None:
    """Error against float64 at most twice that of plain bf16 torch."""
    plain, fast = pair(SPECS[name], scheme, kernel=f"native@{target}")
    assert isinstance(fast, NativeDecoder)
    x = torch.randn(1, 90, plain.spec.width, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = Decoder(plain.spec, embeddings=False).double()
    exact.load_state_dict(plain.state_dict())
    truth = run(exact, x.double(), 70)
    ours, theirs = run(fast, x, 70), run(plain, x, 70)
    assert (ours - truth).abs().max() <= 2 * (theirs - truth).abs().max()


@NEEDS_COMPILER
@EVERY_TARGET
@pytest.mark.parametrize("scheme", [Scheme.BF16, Scheme.INT8, Scheme.INT4, Scheme.W8A8])
def test_a_native_row_is_the_same_in_a_prefill_and_alone(
    scheme: Scheme, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only a few rows: a row's bits never depend on what is computed beside it, nor on the number of threads."""
    monkeypatch.setattr("edge_vla.runtime.cpu.native.thread_pool.WORTH_A_THREAD", 1)
    spec = dataclasses.replace(TINY.decoder, width=256, mlp_width=320)
    _, fast = pair(spec, scheme, kernel=f"native@{target}")
    x = torch.randn(1, 75, spec.width, generator=torch.Generator().manual_seed(1)).bfloat16()
    whole, threads = run(fast, x, 73), torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(run(fast, x, 1), whole)
            assert torch.equal(run(fast, x, 40), whole)
    finally:
        torch.set_num_threads(threads)


@NEEDS_COMPILER
@EVERY_TARGET
@pytest.mark.parametrize(
    ("scheme", "kernel"), [(Scheme.INT4, "native"), (Scheme.INT4, "native/int8"), (Scheme.W8A8, "native")]
)
def test_decode_steps_are_embedding_pass_and_head_one_by_one(
    scheme: Scheme, kernel: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, for drafts of any length and with any number of threads."""
    monkeypatch.setattr("edge_vla.runtime.cpu.native.thread_pool.WORTH_A_THREAD", 1)
    decoder = pair(TINY.decoder, scheme, kernel=f"{kernel}@{target}")[1]
    assert isinstance(decoder, NativeDecoder)
    generator = torch.Generator().manual_seed(1)
    prompt, embedding, actions = (
        torch.randn(rows, TINY.decoder.width, generator=generator).bfloat16() for rows in (40, 89, 89)
    )
    head = NativeHead(PackedWeight(Scheme.BF16, (89, TINY.decoder.width), None, actions, None), decoder.library)
    steps, cache, threads = NativeSteps(decoder, head, embedding), decoder.cache(56), torch.get_num_threads()

    def one_by_one(bins: list[int], further: int) -> tuple[list[int], list[float]]:
        best, margins, start = list[int](), list[float](), 40
        for _ in range(1 + further):
            found = head.choose(decoder.rows(embedding[bins][None], start, cache)[0])
            best, margins, start, bins = best + found[0], margins + found[1], start + len(bins), found[0][-1:]
        return best, margins

    try:
        for members in (1, 2, 3):
            torch.set_num_threads(members)
            decoder.rows(prompt[None], 0, cache)
            for bins, further in [([7], 5), ([88, 0, 3], 0), ([5, 6, 7, 8, 9, 10], 0), ([1, 2], 4), ([3], 0)]:
                assert steps(bins, 40, cache, further) == one_by_one(bins, further)
    finally:
        torch.set_num_threads(threads)
    for bins in ([89], [0, -1]):
        with pytest.raises(AssertionError, match="expected bins"):
            steps(bins, 40, cache)
    with pytest.raises(AssertionError, match="64 slots"):
        steps([1], 60, cache, 5)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(
    ("scheme", "kernel"),
    [(scheme, "torch") for scheme in (Scheme.INT4, Scheme.INT8, Scheme.UINT4, Scheme.W8A8)]
    + [pytest.param(scheme, "native", marks=NEEDS_COMPILER) for scheme in (Scheme.INT4, Scheme.INT8, Scheme.W8A8)]
    + [pytest.param(scheme, "native/int8", marks=NEEDS_COMPILER) for scheme in (Scheme.INT4, Scheme.INT8)],
)
def test_quantised_is_the_plain_decoder_with_its_weights(scheme: Scheme, mixed: bool, kernel: str) -> None:
    plain, fast = pair(TINY.decoder, scheme, mixed=mixed, kernel=kernel)
    x = torch.randn(1, 40, plain.spec.width, generator=torch.Generator().manual_seed(1)).bfloat16()
    ours, theirs = run(fast, x, 32).float(), run(plain, x, 32).float()
    assert (ours - theirs).abs().max() <= 0.05 * theirs.abs().max()


@NEEDS_COMPILER
@pytest.mark.parametrize("scheme", [Scheme.INT4, Scheme.INT8])
def test_only_a_prefill_is_rounded(scheme: Scheme) -> None:
    """As int8 times int8 does there, and passes over the same cache keep their bits."""
    spec = dataclasses.replace(TINY.decoder, layers=1)
    exact, rounding = pair(spec, scheme, kernel="native")[1], pair(spec, scheme, kernel="native/int8")[1]
    x = torch.randn(1, 40, spec.width, generator=torch.Generator().manual_seed(1)).bfloat16()
    cache: Any = exact.cache(45)
    prefills = [decoder.rows(x, 0, cache) for decoder in (rounding, exact)]  # what is left there is exact
    assert not torch.equal(*prefills)
    assert (prefills[0] - prefills[1]).abs().max() <= 0.05 * prefills[1].abs().max()
    assert torch.equal(*(decoder.rows(x[:, :3], 40, cache) for decoder in (exact, rounding)))


@pytest.mark.parametrize("wanted", [slice(0, 16), slice(9, 13), slice(15, 16)])
def test_rows_that_nobody_reads_are_left_out_and_the_others_stay(wanted: slice) -> None:
    plain, fast = pair(TINY.decoder, dtype=torch.float32)
    x = torch.randn(1, 16, plain.spec.width, generator=torch.Generator().manual_seed(1))
    assert isinstance(fast, FusedDecoder)
    for decoder in (plain, fast):
        whole, part = (Cache.allocate(plain.spec, 1, 16, torch.float32, CPU) for _ in range(2))
        expected = decoder.rows(x, 0, whole)[:, wanted]
        assert (decoder.rows(x, 0, part, wanted) - expected).abs().max() < 1e-5
        assert (part.keys - whole.keys).abs().max() < 1e-5, "their keys are needed all the same"


@KERNELS
def test_a_longer_prompt_after_a_shorter_one(kernel: str) -> None:
    """Tables and buffers grow; what they gave before, they give again."""
    plain, fast = pair(TINY.decoder, kernel=kernel)
    for rows in (8, 64, 8):
        x = torch.randn(1, rows, plain.spec.width, generator=torch.Generator().manual_seed(rows)).bfloat16()
        assert (run(fast, x, rows - 4).float() - run(plain, x, rows - 4).float()).abs().max() < 0.05


@pytest.mark.parametrize("scheme", [Scheme.BF16, Scheme.INT8, Scheme.INT4, Scheme.UINT4, Scheme.W8A8])
def test_a_few_rows_are_batch_invariant_at_true_width(scheme: Scheme) -> None:
    """With two threads too: a row's bits depend neither on how many rows there are nor on its place among them."""
    _, fast = pair(DecoderSpec(vocab_rows=32, layers=1, mlp_width=1024), scheme)
    x = torch.randn(1, 7, fast.spec.width, generator=torch.Generator().manual_seed(1)).bfloat16()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        cache: Any = fast.cache(64)
        whole = fast.rows(x, 20, cache)
        for first, last in [(0, 1), (0, 2), (3, 4), (2, 7), (6, 7)]:
            assert torch.equal(fast.rows(x[:, first:last], 20 + first, cache), whole[:, first:last])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("scheme", [Scheme.BF16, Scheme.INT8, Scheme.INT4, Scheme.UINT4, Scheme.W8A8])
def test_a_fused_weight_is_its_parts_in_order(scheme: Scheme) -> None:
    parts = [quantise(torch.randn(n, 64), scheme, 32 if scheme in GROUPED else None) for n in (32, 16, 48)]
    whole = fuse(parts)
    assert whole is not None
    assert torch.equal(dequantise(whole.check("whole")), torch.cat([dequantise(part) for part in parts]))
    assert fuse([parts[0]]) is parts[0]


def test_parts_of_different_formats_stay_apart() -> None:
    weight = torch.randn(32, 64)
    different = [
        quantise(weight, Scheme.INT8, None),
        quantise(weight, Scheme.INT4, 32),
        quantise(weight, Scheme.INT4, 64),
    ]
    assert fuse(different[:2]) is None
    assert fuse(different[1:]) is None
