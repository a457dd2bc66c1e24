"""Draft and verify: whatever is drafted, the tokens are those of plain decoding; a draft can only cost passes."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import edge_vla
from edge_vla.data import synthetic_image
from edge_vla.errors import EdgeVLAError, FrameError, UsageError
from edge_vla.runtime import Policy
from edge_vla.runtime.cpu.native.library import library
from edge_vla.runtime.engine import StagedEngine
from edge_vla.runtime.session import repeat
from edge_vla.runtime.types import Decision, Draft
from tests.conftest import TINY

TEXT, OTHER = "put the red block on the plate", "open the very much longer drawer of the cabinet on the left"
DIMS = 7
CALM = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def image(seed: int) -> Image.Image:
    return synthetic_image(seed, 28)


@pytest.fixture(scope="module", params=["int4", "int4, rounded", "int8", "bf16", "checkpoint", "fp32"])
def policy(request: pytest.FixtureRequest, tiny_artifacts: Mapping[int, Path]) -> Policy:
    bits = {"int4": 4, "int8": 8, "bf16": 16, "fp32": 16}
    if request.param == "checkpoint":
        return edge_vla.load(TINY, "cpu")
    if request.param == "int4, rounded":
        if library() is None:
            pytest.skip("no C compiler here")
        return edge_vla.load(tiny_artifacts[4], "cpu", kernel="native/int8", check=False)
    dtype = "fp32" if request.param == "fp32" else "bf16"
    return edge_vla.load(tiny_artifacts[bits[request.param]], "cpu", dtype=dtype, check=False)


@pytest.fixture(scope="module")
def fast(tiny_artifacts: Mapping[int, Path]) -> Policy:
    return edge_vla.load(tiny_artifacts[4], "cpu", check=False)


def fixed(bins: Sequence[int], jacobi: bool = True) -> Draft:
    def draft(known: Sequence[int], guesses: Sequence[int]) -> list[int]:
        return [*guesses, *bins[len(guesses) :]] if jacobi else list(bins)

    return draft


def bins_of(policy: Policy, tokens: Sequence[int]) -> list[int]:
    return [token - policy.config.spec.action.first for token in tokens]


@pytest.mark.parametrize("seed", range(3))
def test_a_right_draft_costs_no_pass_and_a_wrong_one_no_more_than_plain(policy: Policy, seed: int) -> None:
    plain = policy.act(image(seed), TEXT)
    truth = bins_of(policy, plain.tokens)
    assert plain.passes == DIMS - 1
    for right in range(DIMS + 1):
        draft = [*truth[:right], *((bin + 1) % 64 for bin in truth[right:])]
        for bitwise_exact in (False, True):
            action = policy.act(image(seed), TEXT, draft=fixed(draft), bitwise_exact=bitwise_exact)
            assert action.passes <= DIMS - 1
            if action.tokens == plain.tokens and not bitwise_exact and policy.network.decoder.prefill_matches_step:
                assert (action.passes == 0) == (right >= DIMS - 1)
    assert policy.act(image(seed), TEXT, draft=fixed(truth), bitwise_exact=True).passes == 1


@pytest.mark.parametrize("seed", range(4))
def test_exact_tokens_and_margins_do_not_depend_on_the_draft(policy: Policy, seed: int) -> None:
    """Bit for bit: the same logits come out whatever stands in the rows behind."""
    plain = policy.act(image(seed), TEXT, bitwise_exact=True)
    truth = bins_of(policy, plain.tokens)
    generator = torch.Generator().manual_seed(seed)
    for wrong in range(DIMS):
        noise = torch.randint(0, 64, (DIMS,), generator=generator).tolist()
        for jacobi in (True, False):
            action = policy.act(
                image(seed), TEXT, draft=fixed([*truth[:wrong], *noise[wrong:]], jacobi), bitwise_exact=True
            )
            assert action.tokens == plain.tokens
            assert action.margins == plain.margins


@given(st.lists(st.integers(0, 63), min_size=DIMS, max_size=DIMS), st.booleans(), st.integers(0, 3))
@CALM
def test_any_draft_gives_plain_tokens(fast: Policy, bins: list[int], jacobi: bool, seed: int) -> None:
    plain = fast.act(image(seed), TEXT, bitwise_exact=True)
    action = fast.act(image(seed), TEXT, draft=fixed(bins, jacobi), bitwise_exact=True)
    assert (action.tokens, action.margins) == (plain.tokens, plain.margins)
    assert action.passes <= DIMS - 1


def test_rows_bits_do_not_depend_on_their_neighbours(policy: Policy) -> None:
    """What bitwise exact drafting stands on: in passes of one shape a row sees earlier rows only, and where the
    decoder is batch-invariant the number of rows makes no difference either."""
    network, decoder = policy.network, policy.network.decoder
    with torch.inference_mode():
        cache = decoder.cache(32)
        decoder.rows(torch.randn(1, 16, network.spec.decoder.width).to(network.dtype), 0, cache.first(16))
        base = torch.randn(1, 8, network.spec.decoder.width).to(network.dtype)
        whole = decoder.rows(base, 16, cache).clone()
        best, margins = network.head.choose(whole[0])
        for row in range(8):
            other = torch.randn_like(base)
            other[:, : row + 1] = base[:, : row + 1]
            changed = decoder.rows(other, 16, cache)
            assert torch.equal(changed[:, : row + 1], whole[:, : row + 1])
            again = network.head.choose(changed[0])
            assert (again[0][: row + 1], again[1][: row + 1]) == (best[: row + 1], margins[: row + 1])
        decoder.rows(base, 16, cache)
        for first, last in [(0, 1), (0, 3), (2, 3), (5, 8), (7, 8), (1, 7)] if decoder.batch_invariant else []:
            decoder.rows(torch.randn_like(base), 24, cache)  # overwrites the output of before; no row sees these
            part = decoder.rows(base[:, first:last], 16 + first, cache)
            assert torch.equal(part, whole[:, first:last])
            assert network.head.choose(part[0]) == (best[first:last], margins[first:last])


def test_plain_decoding_is_exact_where_the_decoder_is_batch_invariant(policy: Policy) -> None:
    for seed in range(3):
        plain, exact = policy.act(image(seed), TEXT), policy.act(image(seed), TEXT, bitwise_exact=True)
        if policy.network.decoder.batch_invariant:
            assert (plain.tokens, plain.margins) == (exact.tokens, exact.margins)


def test_no_draft_in_a_prefill_that_rounds(policy: Policy) -> None:
    if policy.network.decoder.prefill_matches_step:
        pytest.skip("a prefill computes rows as a step does")
    session = policy.session(bitwise_exact=False)
    for seed in (0, 0, 1, 2, 2):
        drafted, plain = session.act(image(seed), TEXT), policy.act(image(seed), TEXT)
        assert (drafted.tokens, drafted.margins) == (plain.tokens, plain.margins)


def test_a_session_is_a_policy_that_remembers(policy: Policy) -> None:
    session = policy.session(bitwise_exact=True)
    for seed in (0, 0, 1, 1):
        action = session.act(image(seed), TEXT)
        assert action.tokens == policy.act(image(seed), TEXT, bitwise_exact=True).tokens
    again = session.act(image(1), TEXT)
    assert again.passes == 1
    assert again.drafted == again.tokens
    session.reset()
    assert session.act(image(1), TEXT).drafted == ()


class TestBadInput:
    def test_a_changed_instruction_in_mid_episode(self, fast: Policy) -> None:
        session = fast.session(bitwise_exact=True)
        for seed, text in enumerate((TEXT, TEXT, OTHER, TEXT, "go", OTHER)):
            assert (
                session.act(image(seed % 2), text).tokens == fast.act(image(seed % 2), text, bitwise_exact=True).tokens
            )

    def test_two_robots_interleaved(self, fast: Policy) -> None:
        sessions = [fast.session(bitwise_exact=True) for _ in range(2)]
        for step in range(6):
            for robot, session in enumerate(sessions):
                action = session.act(image(robot), TEXT)
                assert action.tokens == fast.act(image(robot), TEXT, bitwise_exact=True).tokens
                assert action.drafted == (action.tokens if step else ())

    def test_two_robots_in_two_threads(self, fast: Policy) -> None:
        expected = [fast.act(image(robot), text, bitwise_exact=True).tokens for robot, text in enumerate((TEXT, OTHER))]
        wrong = list[object]()

        def drive(robot: int, text: str) -> None:
            session = fast.session(bitwise_exact=True)
            for _ in range(10):
                tokens = session.act(image(robot), text).tokens
                if tokens != expected[robot]:
                    wrong.append((robot, tokens))

        threads = [threading.Thread(target=drive, args=pair) for pair in enumerate((TEXT, OTHER))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

    @pytest.mark.parametrize("before", [True, False])
    def test_a_reset_while_an_action_is_decided(
        self, fast: Policy, before: bool, tiny_artifacts: Mapping[int, Path]
    ) -> None:
        loaded = edge_vla.load(tiny_artifacts[4], "cpu", check=False)

        class Resetting(StagedEngine):
            def decide(self, *arguments: Any, **options: Any) -> Decision:
                if before:
                    session.reset()
                decision = super().decide(*arguments, **options)
                session.reset()
                return decision

        policy = Policy(loaded.engine, loaded.config, loaded.prompter.tokenizer.to_str())
        session = policy.session(bitwise_exact=True)
        session.act(image(0), TEXT)
        policy.engine = Resetting(loaded.network)
        during = session.act(image(0), TEXT)
        policy.engine = loaded.engine
        assert during.tokens == fast.act(image(0), TEXT, bitwise_exact=True).tokens
        assert during.drafted == during.tokens
        assert session.act(image(0), TEXT).drafted == (), "the action begun before the reset left nothing behind"

    def test_a_longer_prompt_than_any_before(self, tiny_artifacts: Mapping[int, Path], fast: Policy) -> None:
        policy = edge_vla.load(tiny_artifacts[4], "cpu", check=False)
        session = policy.session(bitwise_exact=True)
        for words in (1, 60, 2, 90, 1):
            text = " ".join(["up"] * words)
            assert session.act(image(0), text).tokens == fast.act(image(0), text, bitwise_exact=True).tokens

    def test_a_prompt_that_never_fits_leaves_the_session_as_it_was(self, fast: Policy) -> None:
        session = fast.session(bitwise_exact=True)
        before = session.act(image(0), TEXT)
        with pytest.raises(UsageError, match="at most"):
            session.act(image(0), "up " * 5000)
        with pytest.raises(FrameError):
            session.act(torch.zeros(3).numpy(), TEXT)
        with pytest.raises(EdgeVLAError):
            session.act(image(0), TEXT, "no such data set")
        after = session.act(image(0), TEXT)
        assert after.drafted == before.tokens
        assert after.tokens == before.tokens

    @pytest.mark.parametrize("size", [(28, 28), (3, 500), (1, 1)])
    def test_an_image_of_another_size(self, fast: Policy, size: tuple[int, int]) -> None:
        session, picture = fast.session(bitwise_exact=True), image(0).resize(size)
        session.act(image(1), TEXT)
        assert session.act(picture, TEXT).tokens == fast.act(picture, TEXT, bitwise_exact=True).tokens

    def test_a_head_over_the_whole_vocabulary(self, golden_checkpoint: Path) -> None:
        full = edge_vla.load(golden_checkpoint, "cpu", head="full")
        with pytest.raises(UsageError, match="head"):
            full.session()


@given(st.data())
@CALM
def test_any_order_of_acts_and_resets(fast: Policy, data: st.DataObject) -> None:
    """Several robots, instructions, pictures and resets in any order: always the tokens of a stateless policy."""
    sessions = [fast.session(bitwise_exact=True) for _ in range(3)]
    for _ in range(data.draw(st.integers(1, 8))):
        session = data.draw(st.sampled_from(sessions))
        if data.draw(st.integers(0, 4)) == 0:
            session.reset()
            continue
        seed, text = data.draw(st.integers(0, 2)), data.draw(st.sampled_from([TEXT, OTHER, "go"]))
        assert session.act(image(seed), text).tokens == fast.act(image(seed), text, bitwise_exact=True).tokens


def test_a_miss_is_drafted_again_by_the_network_itself() -> None:
    draft = repeat((10, 20, 63), 3)
    assert draft is not None
    assert draft((), ()) == [10, 20, 63]
    assert draft([9], [9, 8]) == [9, 8, 63]


@pytest.mark.parametrize("first", [None, (), (10, 20)])
def test_nothing_to_go_by(first: tuple[int, ...] | None) -> None:
    assert repeat(first, 3) is None, "nothing before, or the data set changed and has actions of another length"


def test_many_instructions_do_not_change_the_first_ones_action(tiny_artifacts: Mapping[int, Path]) -> None:
    """More than are kept: prompt ids and text embeddings are made again."""
    policy = edge_vla.load(tiny_artifacts[4], "cpu", check=False)
    first = [policy.act(image(0), f"go{' up' * n}").tokens for n in range(40)]
    assert [policy.act(image(0), f"go{' up' * n}").tokens for n in range(40)] == first
