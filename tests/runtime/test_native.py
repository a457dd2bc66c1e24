"""The network in C against torch: as exact as plain bf16, with SIMD instructions and without, and never required."""

from __future__ import annotations

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor

from edge_vla.checkpoint import key_table
from edge_vla.checkpoint.keys import vision_keys
from edge_vla.errors import UsageError
from edge_vla.quant import PackedWeight, Scheme, dequantise, quantise
from edge_vla.runtime.cpu.assemble import Assembly
from edge_vla.runtime.cpu.native import library as native_library
from edge_vla.runtime.cpu.native import thread_pool
from edge_vla.runtime.cpu.native.gemm import NativeGemm, NativeHead
from edge_vla.runtime.cpu.native.layout import fits, fits_int
from edge_vla.runtime.cpu.native.library import library, require_library
from edge_vla.runtime.cpu.native.structs import STRUCTS, Int8Inputs, Pass
from edge_vla.runtime.cpu.native.targets import Target, runnable
from edge_vla.runtime.cpu.native.vision import NativeVision, Weights, vision_fits
from edge_vla.runtime.kernels.w8a8 import RoundedRows, round_rows
from edge_vla.runtime.network import margins
from edge_vla.runtime.vision.towers import torch_vision, with_flat_patches
from edge_vla.spec import OPENVLA_7B, TINY, PolicySpec

CPU, BF16 = torch.device("cpu"), torch.bfloat16
NEEDS_COMPILER = pytest.mark.skipif(library() is None, reason="no C compiler here")
EVERY_TARGET = pytest.mark.parametrize("target", runnable(), ids=lambda target: target.name)
FORMATS = [(Scheme.BF16, None), (Scheme.INT8, None), (Scheme.INT4, 32), (Scheme.INT4, 128), (Scheme.INT4, 256)]


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_VLA_NATIVE", "0")


def weight(scheme: Scheme, group: int | None, n: int, k: int) -> PackedWeight:
    return quantise(torch.randn(n, k, generator=torch.Generator().manual_seed(1)), scheme, group)


@NEEDS_COMPILER
@EVERY_TARGET
@pytest.mark.parametrize(("n", "k"), [(64, 256), (192, 512), (89, 768)])
@pytest.mark.parametrize(("scheme", "group"), FORMATS)
def test_a_gemm_is_as_exact_as_plain_bf16_and_batch_invariant(
    scheme: Scheme, group: int | None, n: int, k: int, target: Target
) -> None:
    """Its error against float64 is at most twice that of torch's gemm, and a row has the same bits in any batch."""
    packed = weight(scheme, group, n, k)
    product = NativeGemm(packed, library(target))
    x = torch.randn(50, k, generator=torch.Generator().manual_seed(2)).to(BF16)
    truth = x.double() @ dequantise(packed).double().T
    plain = torch.nn.functional.linear(x, dequantise(packed, BF16))
    whole = product(x)
    assert whole.shape == plain.shape
    assert (whole.double() - truth).abs().max() <= 2 * (plain.double() - truth).abs().max()
    for rows in (1, 2, 3, 5, 7):
        assert torch.equal(product(x[9 : 9 + rows]), whole[9 : 9 + rows])


def rows(count: int, k: int) -> Tensor:
    """(count, K) bfloat16 of very different size, one row in three with an outlier, one all zero."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(count, k, generator=generator) * torch.randn(count, 1, generator=generator).mul_(3).exp_()
    x[::3, 7] *= 50
    x[5] = 0
    return x.to(BF16)


@NEEDS_COMPILER
@EVERY_TARGET
@pytest.mark.parametrize(("n", "k"), [(64, 256), (192, 1040), (89, 36), (64, 11008)])
def test_the_int8_gemm_equals_the_slow_one_bit_for_bit(n: int, k: int, target: Target) -> None:
    packed, x = weight(Scheme.W8A8, None, n, k), rows(50, k)
    packed.codes[3], x[8] = 127, 3.0  # the largest sum there is
    product = NativeGemm(packed, library(target))
    whole = product(x)
    assert torch.equal(whole, RoundedRows(packed, BF16, CPU)(x))
    for count in (1, 2, 3, 4, 5, 6, 7):
        assert torch.equal(product(x[9 : 9 + count]), whole[9 : 9 + count])


@NEEDS_COMPILER
@EVERY_TARGET
@pytest.mark.parametrize(("scheme", "group"), [form for form in FORMATS if form[0] is not Scheme.BF16])
def test_the_int8_gemm_of_narrower_weights_rounds_only_its_output(
    scheme: Scheme, group: int | None, target: Target
) -> None:
    """Against float64 with the same int8 rows, the error is that of rounding the sum to bfloat16."""
    packed, x = weight(scheme, group, 89, 768), rows(50, 768)
    codes, steps = round_rows(x)
    truth = (codes.double() * steps.double()) @ dequantise(packed).double().T
    got = NativeGemm(packed, library(target), int8_inputs=Int8Inputs.IN_PREFILL)(x)
    assert ((got.double() - truth).abs() <= 2**-8 * truth.abs() + 1e-5 * truth.abs().amax(dim=1, keepdim=True)).all()


@NEEDS_COMPILER
@pytest.mark.parametrize("scheme", [Scheme.INT4, Scheme.W8A8])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_inputs_stay_non_finite(scheme: Scheme, value: float) -> None:
    x = torch.ones(8, 256, dtype=BF16)
    x[3, 17] = value
    out = NativeGemm(weight(scheme, 32 if scheme is Scheme.INT4 else None, 64, 256))(x)
    if scheme is Scheme.INT4 and not math.isnan(value):
        assert not out[3].isfinite().any()
        return
    assert out[3].isnan().all()
    assert out[[0, 1, 2, 4, 5, 6, 7]].isfinite().all()


@NEEDS_COMPILER
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_the_head_chooses_as_torch_does(value: float) -> None:
    actions = torch.randn(89, 64, generator=torch.Generator().manual_seed(3)).to(BF16)
    actions[40] = actions[12]  # of equals the first
    hidden = torch.randn(9, 64, generator=torch.Generator().manual_seed(4)).to(BF16)
    hidden[0], hidden[5, 7] = actions[12] * 9, value
    head = NativeHead(PackedWeight(Scheme.BF16, (89, 64), None, actions, None))
    logits = head(hidden).float()
    best, margin = head.choose(hidden)
    sound = [0, 1, 2, 3, 4, 6, 7, 8]
    assert [best[row] for row in sound] == logits.argmax(dim=-1)[sound].tolist()
    assert [margin[row] for row in sound] == [margins(logits)[row] for row in sound]
    assert (best[0], margin[0]) == (12, 0.0)
    assert math.isnan(margin[5])
    assert math.isnan(margins(logits)[5])


def test_formats_that_lines_cannot_hold_do_not_fit() -> None:
    assert not fits(weight(Scheme.INT4, 16, 64, 256)), "prefix sums of rows are kept for spans of 32"
    assert not fits(weight(Scheme.INT4, 160, 64, 320)), "pieces of 128 inputs would cut a group of 160"
    assert not fits(weight(Scheme.UINT4, 32, 64, 256))
    for scheme in (Scheme.INT8, Scheme.W8A8):
        assert not fits(weight(scheme, None, 1, 2**16 + 64)), "32 bits would not hold the sums"
    assert fits(weight(Scheme.INT4, 32, 64, 256))
    assert fits(weight(Scheme.BF16, None, 1, 2**16 + 64))
    assert not fits_int(weight(Scheme.BF16, None, 64, 256))


def eight_bits(spec: PolicySpec, bits: int) -> tuple[Weights, dict[str, Tensor]]:
    """Random weights as stored, matrices in so many bits, and what they dequantise to."""
    generator, keys = torch.Generator().manual_seed(0), key_table(spec)
    stored: dict[str, PackedWeight | Tensor] = {}
    dense: dict[str, Tensor] = {}
    for name in vision_keys(spec):
        shape = keys[name].shape
        spread = 0.5 / max(1, shape[-1]) ** 0.5 if len(shape) == 2 else 0.1
        dense[name] = (torch.randn(shape, generator=generator) * spread + ("norm" in name)).bfloat16()
        stored[name] = dense[name]
        if bits == 8 and len(shape) == 2:
            packed = quantise(dense[name], Scheme.INT8, None)
            stored[name], dense[name] = packed, dequantise(packed, BF16)
    return stored, dense


FULL_WIDTH = dataclasses.replace(
    OPENVLA_7B,
    towers=tuple(dataclasses.replace(tower, image_size=42, depth=2) for tower in OPENVLA_7B.towers),
    decoder=dataclasses.replace(OPENVLA_7B.decoder, width=128, heads=2, kv_heads=2),
)


@NEEDS_COMPILER
@EVERY_TARGET
@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("spec", [TINY, FULL_WIDTH], ids=["tiny", "full width"])
def test_vision_is_as_exact_as_torchs(
    spec: PolicySpec, bits: int, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Error against float64 at most twice that of plain bf16, in a batch, with one thread or three.

    Of a seeded draw: by chance the worst of so few elements is above twice for one draw in 120, whatever computes.
    """
    torch.manual_seed(0)
    stored, dense = eight_bits(spec, bits)
    pixels = torch.randn(2, 3 * len(spec.towers), spec.image_size, spec.image_size)
    loaded = require_library(target)
    assert vision_fits(spec, stored)
    native, torchs = NativeVision(spec, stored, loaded), with_flat_patches(torch_vision(spec, dense, BF16, CPU))
    with torch.inference_mode():
        truth = torch_vision(spec, dense, torch.float64, CPU)(pixels.to(BF16).double())
        got, plain = native(pixels).clone(), torchs(pixels)
    assert got.shape == plain.shape
    wrong, allowed = got.double() - truth, plain.double() - truth
    assert wrong.norm() <= 2 * allowed.norm()
    assert wrong.abs().max() <= 2 * allowed.abs().max()
    monkeypatch.setattr(thread_pool, "WORTH_A_THREAD", 1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        native(-pixels)  # the next call must overwrite all of the result
        assert torch.equal(native(pixels), got)
    finally:
        torch.set_num_threads(threads)
    matrices = sum(packed.bytes for packed in stored.values() if isinstance(packed, PackedWeight))
    if bits == 8 and spec is FULL_WIDTH:
        assert matrices < native.bytes < 1.25 * matrices, "8 bits on disk are 8 bits in memory"


def test_two_pools_at_once_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when two policies act in two threads: each run needs all of its threads at one time."""
    threads = 4
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)

    def act() -> int:
        together, pool, calls = Barrier(threads, timeout=20), thread_pool.ThreadPool(), list[int]()
        for _ in range(50):
            pool.run(lambda _barrier, index, _count: calls.append(index.value + 0 * together.wait()), 1 << 40)
        return len(calls)

    with ThreadPoolExecutor(3) as robots:
        assert [robot.result() for robot in [robots.submit(act) for _ in range(3)]] == [50 * threads] * 3


@NEEDS_COMPILER
def test_a_structure_that_differs_from_c_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_library, "STRUCTS", (Pass, *STRUCTS[1:]))
    native_library.forget()
    with pytest.raises(AssertionError, match=r"differ in .*Pass"):
        library()


def test_without_a_compiler_torch_does_it_all(no_compiler: None) -> None:
    formats = [{name: weight(Scheme.INT4, 32, *shape) for name, shape in TINY.decoder.linears().items()}]
    assert library() is None
    assert not Assembly(TINY, BF16, CPU, formats).native
    with pytest.raises(UsageError, match="EDGE_VLA_NATIVE=0"):
        Assembly(TINY, BF16, CPU, formats, "native")


def test_one_linear_in_an_unknown_format_disables_c() -> None:
    formats = {name: weight(Scheme.INT8, None, *shape) for name, shape in TINY.decoder.linears().items()}
    other = {**formats, "mlp.down_proj": weight(Scheme.UINT4, 32, *formats["mlp.down_proj"].shape)}
    assert not Assembly(TINY, BF16, CPU, [formats, other]).native
    assert not Assembly(TINY, torch.float32, CPU, [formats]).native
    assert not Assembly(TINY, BF16, CPU, [formats], "torch").native
