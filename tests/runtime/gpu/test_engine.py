"""The engine against the original's numbers, the torch loop, and itself with and without drafts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import edge_vla
from edge_vla.artifact import Artifact
from edge_vla.demo import BASE
from edge_vla.demo.instructions import phrase
from edge_vla.demo.render import render, world
from edge_vla.demo.world import EVALUATION_SEEDS, start
from edge_vla.errors import BackendError, NumericError, UsageError
from edge_vla.export import Recipe, export
from edge_vla.quant import Scheme, dequantise, quantise
from edge_vla.runtime.golden import replay
from edge_vla.runtime.gpu.config import Activations, GpuConfig, kernels
from edge_vla.runtime.gpu.kernels.weights import PLAIN, summed
from edge_vla.runtime.gpu.load import from_artifact
from edge_vla.runtime.gpu.products import product
from edge_vla.runtime.policy import Policy
from edge_vla.runtime.types import Decision, Draft
from tests.conftest import TINY
from tests.golden.openvla_tiny import Case, cases
from tests.runtime.gpu.engines import CPU, WORDS, Counted, engine, guess, pixels, policy, torch_loop

DIMS = 7


def decide(
    made: Policy, index: int, draft: Draft | None = None, *, bitwise_exact: bool = True, dims: int = DIMS
) -> Decision:
    prompt = made.prompter(WORDS[index % len(WORDS)])
    return engine(made).decide(prompt, pixels(made, index), dims, draft, bitwise_exact=bitwise_exact)


def bins(made: Policy, decision: Decision) -> list[int]:
    return [token - made.config.spec.action.first for token in decision.tokens]


@pytest.fixture(scope="module")
def golden(golden_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    out = tmp_path_factory.mktemp("golden") / "artifact"
    return policy(export(golden_checkpoint, out, Recipe(bits=16)).directory, torch.float32)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_the_originals_tokens(golden: Policy, case: Case) -> None:
    action = golden.act(case.image, case.instruction, case.unnorm_key)
    assert action.tokens == case.token_ids
    assert np.array_equal(action.values, case.action)
    np.testing.assert_allclose(action.margins, case.top2_margin, atol=2e-3)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, Path]:
    root = tmp_path_factory.mktemp("demo")
    return {bits: export(BASE, root / f"int{bits}", Recipe(bits=bits)).directory for bits in (16, 8, 4)}


def scenes(count: int) -> list[tuple[Image.Image, str]]:
    drawn = [start(seed, "pick") for seed in EVALUATION_SEEDS[2000 : 2000 + count]]
    return [(render(state, world(1)), phrase(task, i)) for i, (state, task) in enumerate(drawn)]


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_the_demo_policys_tokens_in_float32(bits: int, demo: Mapping[int, Path]) -> None:
    """Nothing rounds, so nothing may differ."""
    ours = policy(demo[bits], torch.float32)
    theirs = edge_vla.load(demo[bits], "cpu", dtype="fp32", kernel="reference" if bits < 16 else "auto", check=False)
    for image, text in scenes(8):
        got, expected = ours.act(image, text), theirs.act(image, text)
        assert got.tokens == expected.tokens
        np.testing.assert_allclose(got.margins, expected.margins, atol=1e-3)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_the_demo_policy_in_bfloat16(bits: int, demo: Mapping[int, Path]) -> None:
    """Tokens differ from the torch loop's at near-ties only, and logits are as close to float32's as the loop's are."""
    ours, theirs, directory = policy(demo[bits]), torch_loop(demo[bits]), demo[bits]
    exact = edge_vla.load(directory, "cpu", dtype="fp32", kernel="reference" if bits < 16 else "auto", check=False)
    (frame,) = Artifact(directory).manifest.golden
    assert replay(ours, directory, [frame]) == []
    errors = np.zeros(2)
    for image, text in scenes(8):
        got, expected = ours.act(image, text), theirs.act(image, text)
        pairs = zip(got.tokens, expected.tokens, expected.margins, strict=True)
        differing = [margin for one, two, margin in pairs if one != two]
        assert not differing or differing[0] <= frame.noise
        truth, *logits = (
            made.network.head.logits(made.forced(image, text, expected.tokens)) for made in (exact, ours, theirs)
        )
        errors += [float((one - truth).square().mean()) for one in logits]
    assert errors[0] ** 0.5 <= 1.5 * errors[1] ** 0.5


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("activations", ["16", "8"])
def test_a_draft_never_changes_a_bit(bits: int, activations: Activations, tiny_artifacts: Mapping[int, Path]) -> None:
    made = policy(tiny_artifacts[bits], activations=activations)
    generator = np.random.default_rng(0)
    for index in range(4):
        plain = decide(made, index)
        right = bins(made, plain)
        assert plain.passes == DIMS - 1
        for wrong in range(DIMS):
            draft = [*right[:wrong], *generator.integers(0, made.config.spec.action.bins, DIMS - wrong).tolist()]
            drafted = decide(made, index, guess(draft))
            assert (drafted.tokens, drafted.margins) == (plain.tokens, plain.margins)
            assert 1 <= drafted.passes <= DIMS - 1
            assert drafted.drafted == tuple(made.config.spec.action.first + one for one in draft)
        assert decide(made, index, guess(right)).passes == 1


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_steps_of_one_launch_give_the_same_bits(bits: int, tiny_artifacts: Mapping[int, Path]) -> None:
    artifact = Artifact(tiny_artifacts[bits])
    whole = from_artifact(artifact, torch.bfloat16, CPU, "reference", steps="persistent")
    chain = from_artifact(artifact, torch.bfloat16, CPU, "reference", steps="chain")
    made = policy(tiny_artifacts[bits])
    prompt = made.prompter(WORDS[0])
    got = whole.decide(prompt, pixels(made, 0), DIMS, guess([0] * DIMS), bitwise_exact=True)
    expected = chain.decide(prompt, pixels(made, 0), DIMS)
    assert (got.tokens, got.margins) == (expected.tokens, expected.margins)
    assert [one.network.kernels["decode steps"] for one in (whole, chain)] == ["one launch", "a chain of kernels"]


def test_programs_that_wait_in_vain_are_an_error(tiny_artifacts: Mapping[int, Path]) -> None:
    whole = from_artifact(Artifact(tiny_artifacts[8]), torch.bfloat16, CPU, "reference", steps="persistent")
    made = policy(tiny_artifacts[8])
    prompt = made.prompter(WORDS[0])
    network = whole.decoder.whole
    assert network is not None
    with torch.inference_mode():
        norm = network.norm.clone()
        network.norm.fill_(torch.nan)  # as the kernel leaves NaN when it gives up
        network.barrier[1] = 1
    with pytest.raises(BackendError, match="waited in vain"):
        whole.decide(prompt, pixels(made, 0), DIMS)
    with torch.inference_mode():
        network.norm.copy_(norm)
    assert whole.decide(prompt, pixels(made, 0), DIMS).tokens == decide(made, 0).tokens


def test_a_draft_that_keeps_its_own_guesses(tiny_artifacts: Mapping[int, Path]) -> None:
    made = policy(tiny_artifacts[4])
    plain = decide(made, 0)
    drafted = decide(made, 0, lambda known, guesses: [0] * DIMS)
    assert (drafted.tokens, drafted.margins) == (plain.tokens, plain.margins)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_draft_in_the_prefill_saves_the_last_pass(bits: int, tiny_artifacts: Mapping[int, Path]) -> None:
    """Another shape rounds differently: tokens may differ where the margin is within rounding, and only there."""
    made = policy(tiny_artifacts[bits])
    for index in range(6):
        plain = decide(made, index)
        drafted = decide(made, index, guess(bins(made, plain)), bitwise_exact=False)
        pairs = zip(drafted.tokens, plain.tokens, plain.margins, strict=True)
        differing = [margin for one, two, margin in pairs if one != two]
        assert not differing or differing[0] < 0.05
        assert drafted.passes == 0 or differing
        far = decide(made, index, guess([0] * DIMS), bitwise_exact=False)
        assert far.tokens == plain.tokens or min(plain.margins) < 0.05


@pytest.mark.parametrize("bits", [8, 4])
def test_no_draft_is_verified_in_a_prefill_that_rounds_rows(bits: int, tiny_artifacts: Mapping[int, Path]) -> None:
    """Its arithmetic differs from a step's, so verifying there would change tokens: they stay, to the bit."""
    counted = Counted()
    made = policy(tiny_artifacts[bits], activations="8", record=counted)
    assert not engine(made).decoder.prefill_matches_step
    made.warm(WORDS[:1])
    assert counted.recorded == 3, "no graph for a piece that is never run"
    for index in range(0, 6, len(WORDS)):
        plain = decide(made, index)
        for guessed in (bins(made, plain), [0] * DIMS):
            drafted = decide(made, index, guess(guessed), bitwise_exact=False)
            assert (drafted.tokens, drafted.margins) == (plain.tokens, plain.margins)
            assert drafted.passes >= 1
    assert counted.recorded == 3


def test_a_product_rounds_the_prefill_only_if_a_step_does_not_round() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 128, generator=generator)
    schemes = ((Scheme.INT4, 32), (Scheme.INT8, None), (Scheme.W8A8, None), (Scheme.BF16, None))
    packed = {scheme: quantise(weight, scheme, group) for scheme, group in schemes}
    rounded, plain = (GpuConfig(kernels("reference"), torch.bfloat16, activations) for activations in ("8", "16"))
    assert [product([packed[scheme]], rounded).rounds_prefill for scheme, _ in schemes] == [True, True, False, False]
    assert not any(product([packed[scheme]], plain).rounds_prefill for scheme, _ in schemes)
    assert not product([packed[Scheme.INT4], packed[Scheme.INT8]], rounded).rounds_prefill, (
        "mixed formats are not rounded"
    )


@pytest.mark.parametrize("dims", [1, 2, 9, 10, 20])
def test_any_number_of_dimensions(dims: int, tiny_artifacts: Mapping[int, Path]) -> None:
    """Passes of more than eight rows go through the gemm kernels."""
    made = policy(tiny_artifacts[16], torch.float32)
    oracle = edge_vla.load(tiny_artifacts[16], "cpu", dtype="fp32", check=False)
    prompt = made.prompter(WORDS[1])
    with torch.inference_mode():
        expected = oracle.engine.decide(prompt, pixels(made, 1), dims)
    got = decide(made, 1, dims=dims)
    assert got.tokens == expected.tokens
    np.testing.assert_allclose(got.margins, expected.margins, atol=1e-4)


def test_teacher_forcing_predicts_what_the_engine_answers(tiny_artifacts: Mapping[int, Path]) -> None:
    made = policy(tiny_artifacts[4])
    image = np.full((40, 40, 3), 90, np.uint8)
    action = made.act(image, WORDS[0])
    logits = made.network.head.logits(made.forced(image, WORDS[0], action.tokens))
    first = made.config.spec.action.first
    clear = [margin > 0.05 for margin in action.margins]
    for got, expected, is_clear in zip(logits.argmax(-1).tolist(), action.tokens, clear, strict=True):
        assert got == expected - first or not is_clear


def test_a_session_drafts_on_the_engine(tiny_artifacts: Mapping[int, Path]) -> None:
    made = policy(tiny_artifacts[4])
    session, image = made.session(), np.full((40, 40, 3), 90, np.uint8)
    first, again = session.act(image, WORDS[0]), session.act(image, WORDS[0])
    assert first.tokens == again.tokens
    assert first.margins == again.margins
    assert (first.passes, again.passes) == (DIMS - 1, 1)
    assert {"preprocess", "graph", "total"} <= set(first.timing_ms)


def test_a_non_finite_number_gives_no_action_and_leaves_nothing_behind(
    tiny_artifacts: Mapping[int, Path],
) -> None:
    made = policy(tiny_artifacts[4])
    before = decide(made, 0)
    norm = engine(made).decoder.layers[0].input_layernorm
    kept = norm.clone()
    with torch.inference_mode():
        norm.fill_(torch.nan)
    with pytest.raises(NumericError, match="no action"):
        decide(made, 0)
    with torch.inference_mode():
        norm.copy_(kept)
    after = decide(made, 0)
    assert (after.tokens, after.margins) == (before.tokens, before.margins)


def test_graphs_are_recorded_once_and_replayed(tiny_artifacts: Mapping[int, Path]) -> None:
    counted = Counted()
    made = policy(tiny_artifacts[4], record=counted)
    first = decide(made, 0)
    assert (counted.recorded, counted.replayed) == (1, 1)
    assert decide(made, 0) == first
    assert (counted.recorded, counted.replayed) == (1, 2)
    assert decide(made, 3) != first, "another picture, the same words: a replay reads its inputs anew"
    assert counted.recorded == 1


def test_warm_is_before_the_first_action(tiny_artifacts: Mapping[int, Path]) -> None:
    counted = Counted()
    made = policy(tiny_artifacts[4], record=counted)
    made.warm(WORDS)
    warm = counted.recorded
    assert warm == 4 * len({len(made.prompter(words)) for words in WORDS})
    for index in range(len(WORDS)):
        right = bins(made, decide(made, index))
        decide(made, index, guess(right))
        decide(made, index, guess([0] * DIMS), bitwise_exact=False)
    assert counted.recorded == warm


def test_more_graphs_than_are_kept_cannot_be_warmed(tiny_artifacts: Mapping[int, Path]) -> None:
    made = engine(policy(tiny_artifacts[4]))
    with pytest.raises(UsageError, match=r"9 prompt lengths need 36 graphs, 32 are kept: warm fewer prompts"):
        made.warm(range(20, 29), DIMS)
    made.warm(range(20, 28), DIMS)
    assert len(made.graphs) == 32


def test_a_longer_prompt_allocates_and_records_again(tiny_artifacts: Mapping[int, Path]) -> None:
    counted = Counted()
    made = policy(tiny_artifacts[4], record=counted)
    before = decide(made, 0)
    longer = made.prompter(" ".join(WORDS * 8))
    assert len(longer) > 60
    engine(made).decide(longer, pixels(made, 0), DIMS)
    assert counted.recorded == 2
    assert decide(made, 0) == before
    assert counted.recorded == 3, "the old graph knew the old addresses"


def test_products_of_different_formats_side_by_side() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(n, 128, generator=generator) for n in (32, 48, 16)]
    parts = [
        quantise(weights[0], Scheme.INT4, 32),
        quantise(weights[1], Scheme.INT8, None),
        quantise(weights[2], Scheme.BF16, None),
    ]
    made = product(parts, GpuConfig(kernels("reference"), torch.bfloat16, "8"))
    assert made.row_format == PLAIN, "each would read int8 rows in its own order"
    assert made.names == ("w4a16_gemv+w8a16_gemv+w16_gemv", "w4a16_gemm+w8a16_gemm+torch")
    x = torch.randn(5, 128, generator=generator).bfloat16()
    truth = x.double() @ torch.cat([dequantise(part).double() for part in parts]).T
    for out in (summed(made.gemv(x), torch.bfloat16), made.gemm(x)):
        assert (out.double() - truth).abs().max() <= 2**-8 * truth.abs().max() + 1e-2


def test_w8a8_rounds_one_row_as_it_rounds_many() -> None:
    generator = torch.Generator().manual_seed(0)
    packed = quantise(torch.randn(32, 128, generator=generator), Scheme.W8A8, None)
    config = GpuConfig(kernels("reference"), torch.bfloat16, "16")
    made, x = product([packed], config), torch.randn(5, 128, generator=generator).bfloat16()
    assert torch.equal(made.gemv(x), made.gemm(config.kernels.quantise_rows(x, "int8")))
    truth = x.double() @ dequantise(packed).double().T
    assert (made.gemv(x).double() - truth).abs().max() <= 0.03 * truth.abs().max()


def test_a_format_without_a_kernel_is_refused() -> None:
    packed = quantise(torch.randn(32, 128), Scheme.UINT4, 32)
    with pytest.raises(BackendError, match=r"no kernel for uint4 weights.*--kernel reference"):
        product([packed], GpuConfig(kernels("reference"), torch.bfloat16, "16"))


def test_int8_towers_stay_int8(tmp_path: Path) -> None:
    wide = policy(export(TINY, tmp_path / "16", Recipe(bits=4)).directory)
    small = policy(export(TINY, tmp_path / "8", Recipe(bits=4, vision_bits=8)).directory)
    assert small.network.weight_bytes["vision"] < 0.75 * wide.network.weight_bytes["vision"]
    got, expected = (one.network.vision(torch.from_numpy(pixels(one, 0))[None]).float() for one in (small, wide))
    assert (got - expected).abs().max() < 0.05 * expected.abs().max()
