"""Agreement arithmetic: known answers, and laws that hold for any two policies."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special, stats

from edge_vla.bench.agreement import Predictions, compare, compare_candidates, margin_floor
from edge_vla.bench.motion import FrameFacts, phases_by_gripper
from edge_vla.bench.result import Flips
from edge_vla.bench.statistics import wilson
from edge_vla.data import Frame
from edge_vla.openvla import ActionTokens
from edge_vla.openvla.statistics import ActionStatistics
from edge_vla.spec import ActionSpec

TOKENS = ActionTokens(ActionSpec(bins=64, end=384))
FIRST, BINS = TOKENS.spec.first, TOKENS.spec.bins
WIDTH = 2 / (BINS - 1)  # of a bin, normalised
DIMS = 3
STATISTICS = ActionStatistics(np.array([-0.2, 1.0, 0.0]), np.array([0.2, 5.0, 1.0]), np.array([True, True, False]))
seeds = st.integers(0, 2**32 - 1)


def facts(
    episodes: list[str], steps: list[int] | None = None, recorded: NDArray[np.float64] | None = None
) -> FrameFacts:
    steps = steps or [episodes[:row].count(name) for row, name in enumerate(episodes)]
    statistics = [STATISTICS] * len(episodes)
    phase = phases_by_gripper(episodes, steps, statistics, recorded)
    return FrameFacts(episodes, steps, statistics, ("dx", "dy", "gripper"), recorded, phase)


def predictions(free: object, margin: float = 1.0) -> Predictions:
    """A policy whose best id is above every other by `margin`."""
    ids = np.array(free, dtype=np.int64)
    logits = np.zeros((*ids.shape, BINS), dtype=np.float32)
    np.put_along_axis(logits, (ids - FIRST)[..., None], margin, axis=-1)
    return Predictions(ids, ids, logits, np.zeros(ids.shape), ids)


def drawn(generator: np.random.Generator, frames: int, near: Predictions | None = None) -> Predictions:
    """A policy with random logits, or one whose logits lie near another's."""
    noise = generator.normal(size=(frames, DIMS, BINS)).astype(np.float32)
    logits = noise if near is None else np.asarray(near.logits + noise / 4, dtype=np.float32)
    ids = logits.argmax(axis=-1) + FIRST
    return Predictions(ids, ids, logits, generator.random(ids.shape) / 1e3, ids)


def names(frames: int, length: int = 4) -> list[str]:
    return [f"episode {row // length}" for row in range(frames)]


@settings(max_examples=20)
@given(seeds, st.integers(1, 40))
def test_a_policy_agrees_with_itself(seed: int, frames: int) -> None:
    generator = np.random.default_rng(seed)
    same = drawn(generator, frames)
    recorded = STATISTICS.unnormalise(generator.uniform(-1, 1, (frames, DIMS)))
    result = compare(same, same, facts(names(frames), recorded=recorded), TOKENS, floor=0.0)
    for share in (result.teacher_forced, result.free_running, result.exact_tokens, result.exact_action):
        assert (share.mean, share.high) == (1, 1)
    assert result.teacher_forced.low == pytest.approx(wilson(frames * DIMS, frames * DIMS)[0])
    assert result.bins_apart.overall.max == 0
    assert result.kl.overall.mean == result.kl.max == 0
    assert result.robot_units.nrmse == result.gripper.flips.mean == 0
    assert result.gripper.shift_max_steps in (0, None)
    assert result.margins.high_margin is not None
    assert result.margins.near_tie is not None
    assert result.margins.high_margin.flips == result.margins.near_tie.flips == 0
    assert result.against_recorded is not None
    assert result.against_recorded.equal_difference.mean == 0
    assert result.against_recorded.reference == result.against_recorded.candidate
    assert margin_floor(same, same) == 0
    json.dumps(asdict(result), allow_nan=False)


@settings(max_examples=20)
@given(seeds)
def test_the_order_of_frames_does_not_matter(seed: int) -> None:
    generator = np.random.default_rng(seed)
    reference = drawn(generator, 24)
    candidate = drawn(generator, 24, near=reference)
    recorded = STATISTICS.unnormalise(generator.uniform(-1, 1, (24, DIMS)))
    frames = facts(names(24), recorded=recorded)
    order = generator.permutation(24)

    def moved(one: Predictions) -> Predictions:
        return Predictions(
            one.free[order], one.forced[order], one.logits[order], one.outside[order], one.unrestricted[order]
        )

    shuffled = replace(
        frames,
        episodes=[frames.episodes[i] for i in order],
        steps=[frames.steps[i] for i in order],
        recorded=recorded[order],
        phase=[frames.phase[i] for i in order],
    )
    before = compare(reference, candidate, frames, TOKENS, floor=0.1)
    after = compare(moved(reference), moved(candidate), shuffled, TOKENS, floor=0.1)
    assert flat(asdict(after)) == pytest.approx(flat(asdict(before)), rel=1e-6, abs=1e-9)


@settings(max_examples=20)
@given(seeds, st.integers(1, 20), st.integers(0, DIMS - 1))
def test_a_shift_by_bins_is_seen_exactly(seed: int, shift: int, dim: int) -> None:
    ids = np.random.default_rng(seed).integers(FIRST + 1, TOKENS.spec.end - 20, (30, DIMS))
    other = ids.copy()
    other[:, dim] += shift
    result = compare(predictions(ids), predictions(other), facts(names(30)), TOKENS)
    assert [one.max for one in result.bins_apart.by_dimension] == [shift * (d == dim) for d in range(DIMS)]
    assert result.bins_apart.overall.mean == pytest.approx(shift / DIMS)
    found = result.bins_apart.by_dimension[dim]
    assert found.mean == found.p50 == found.p99 == found.max == shift
    assert (found.within_1, found.within_2, found.beyond_8) == (shift <= 1, shift <= 2, shift > 8)
    assert [one.mean for one in result.free_running_by_dimension] == [float(d != dim) for d in range(DIMS)]
    scale = (STATISTICS.q99 - STATISTICS.q01)[dim]
    unit = WIDTH * (scale / 2 if STATISTICS.mask[dim] else 1)
    units = result.robot_units
    assert units.by_dimension[dim].max == pytest.approx(shift * unit)
    assert units.by_dimension[dim].nrmse == pytest.approx(shift * unit / scale)
    assert units.nrmse == pytest.approx(shift * unit / scale / np.sqrt(DIMS))


def test_ids_that_decode_alike_differ_as_tokens_only() -> None:
    reference, candidate = predictions([[FIRST, 340, 350]] * 2), predictions([[FIRST + 1, 340, 350]] * 2)
    result = compare(reference, candidate, facts(["a", "b"]), TOKENS)
    assert (result.exact_tokens.mean, result.exact_action.mean) == (0, 1)
    assert (result.bins_apart.overall.max, result.robot_units.nrmse) == (0, 0)


def test_known_divergences() -> None:
    reference = predictions([[330, 340, 350], [350, 360, 350], [330, 383, 350], [370, 371, 350]])
    candidate = predictions([[330, 341, 351], [351, 360, 350], [331, 383, 350], [370, 371, 350]])
    result = compare(reference, candidate, facts(["a", "a", "b", "b"]), TOKENS, floor=0.5)
    assert [one.mean for one in result.free_running_by_dimension] == [0.5, 0.75, 0.75]
    assert (result.frames, result.episodes, result.dims) == (4, 2, ["dx", "dy", "gripper"])
    assert result.margins.high_margin == Flips(positions=12, flips=4)
    assert result.by_phase["unknown"].frames == 4
    lowest = result.teacher_forced_lowest_holm
    assert lowest.low <= min(share.low for share in result.teacher_forced_by_dimension)
    assert lowest.dimension in result.dims


def test_teacher_forced_and_free_running_are_separate() -> None:
    reference = predictions([[330, 340, 350]] * 4)
    candidate = replace(predictions([[331, 341, 351]] * 4), forced=reference.forced)
    result = compare(reference, candidate, facts(names(4)), TOKENS)
    assert (result.teacher_forced.mean, result.free_running.mean) == (1, 0)
    assert sum(part.flips for part in result.margins.deciles) == 0


def test_near_ties_are_told_from_high_margin_flips() -> None:
    reference, candidate = predictions([[330, 340, 350]], margin=0.1), predictions([[330, 341, 350]])
    near = compare(reference, candidate, facts(["a"]), TOKENS, floor=0.5).margins
    assert (near.high_margin, near.near_tie) == (Flips(positions=0, flips=0), Flips(positions=3, flips=1))
    without = compare(reference, candidate, facts(["a"]), TOKENS).margins
    assert (without.floor, without.high_margin, without.near_tie) == (None, None, None)
    assert sum(part.flips for part in without.deciles) == 1


@given(seeds)
@settings(max_examples=20)
def test_deciles_and_floor_split_all_positions(seed: int) -> None:
    generator = np.random.default_rng(seed)
    reference = drawn(generator, 20)
    candidate = drawn(generator, 20, near=reference)
    found = compare(reference, candidate, facts(names(20)), TOKENS, floor=0.3).margins
    assert [part.positions for part in found.deciles] == [20 * DIMS / 10] * 10
    edges = [edge for part in found.deciles for edge in (part.low, part.high) if edge is not None]
    assert len(edges) == 20
    assert edges == sorted(edges)
    assert found.high_margin is not None
    assert found.near_tie is not None
    assert found.high_margin.positions + found.near_tie.positions == sum(part.positions for part in found.deciles)
    assert found.high_margin.flips + found.near_tie.flips == sum(part.flips for part in found.deciles)


def test_the_floor_counts_a_flip_with_all_the_way_its_margin_moved() -> None:
    reference, noisy_one = predictions([[330, 340, 350]], margin=0.25), predictions([[330, 341, 350]], margin=0.5)
    assert margin_floor(reference, noisy_one) == pytest.approx(0.25 + 0.5, rel=0.02)
    lower = replace(noisy_one, logits=noisy_one.logits - np.float32(8))
    assert margin_floor(reference, lower) == margin_floor(reference, noisy_one)


def test_divergence_equals_scipy() -> None:
    generator = np.random.default_rng(1)
    reference = drawn(generator, 12)
    candidate = drawn(generator, 12, near=reference)
    result = compare(reference, candidate, facts(names(12)), TOKENS)
    ours, theirs = (special.softmax(one.logits.astype(np.float64), axis=-1) for one in (reference, candidate))
    expected = stats.entropy(ours, theirs, axis=-1)
    assert result.kl.overall.mean == pytest.approx(expected.mean())
    assert [one.mean for one in result.kl.by_dimension] == pytest.approx(expected.mean(axis=0))
    assert result.kl.max == pytest.approx(expected.max())


def test_logits_of_any_size_are_taken() -> None:
    reference = drawn(np.random.default_rng(2), 4)
    large = replace(reference, logits=reference.logits * 1e4)
    result = compare(large, reference, facts(names(4)), TOKENS)
    assert np.isfinite(result.kl.max)
    json.dumps(asdict(result), allow_nan=False)


def test_outside_mass_and_invalid_ids() -> None:
    reference = predictions([[330, 340, 350]])
    candidate = replace(reference, unrestricted=np.array([[2, 384, 330]]), outside=np.array([[0.0, 0.3, 0.6]]))
    result = compare(reference, candidate, facts(["a"]), TOKENS)
    assert (result.invalid.candidate, result.invalid.reference) == pytest.approx((2 / 3, 0))
    mass = result.outside_mass
    assert (mass.reference_mean, mass.candidate_mean, mass.candidate_max) == pytest.approx((0, 0.3, 0.6))


def gripper(opened: str) -> Predictions:
    """`o` is an open frame and `c` a closed one; the gripper's range is 0 to 1, unnormalised."""
    ids = TOKENS.encode(np.array([[0.0, 0.0, 0.9 if frame == "o" else 0.1] for frame in opened]))
    return predictions(ids)


@pytest.mark.parametrize(
    ("reference", "candidate", "flips", "transitions", "mean", "most"),
    [
        ("oooccccc", "oooccccc", 0, 1, 0, 0),
        ("oooccccc", "ooooocco", 3, 1, 2, 2),
        ("ooccccoo", "occccooo", 2, 2, 1, 1),
        ("oooccccc", "ocoooocc", 4, 1, 2, 2),
        ("oooccccc", "oooooooo", 5, 1, 7, 7),
        ("oooooooo", "cccccccc", 8, 0, None, None),
    ],
)
def test_gripper(reference: str, candidate: str, flips: int, transitions: int, mean: float, most: int) -> None:
    found = compare(gripper(reference), gripper(candidate), facts(["a"] * 8), TOKENS).gripper
    assert found.flips.mean == flips / 8
    assert (found.transitions, found.shift_mean_steps, found.shift_max_steps) == (transitions, mean, most)
    assert found.dimension == DIMS - 1


def test_a_change_between_episodes_is_none() -> None:
    found = compare(gripper("oooocccc"), gripper("oooocccc"), facts(["a"] * 4 + ["b"] * 4), TOKENS).gripper
    assert found.transitions == 0


def test_against_recorded() -> None:
    normalised = np.array([[0.0, 0.5, 0.9], [0.1, -0.5, 0.1]])
    ids = TOKENS.encode(normalised)
    recorded = STATISTICS.unnormalise(normalised)
    worse = ids.copy()
    worse[0, 1] += 3
    found = compare(predictions(ids), predictions(worse), facts(["a", "b"], recorded=recorded), TOKENS).against_recorded
    assert found is not None
    assert (found.reference.mean, found.candidate.mean) == pytest.approx((1, 5 / 6))
    assert found.equal_difference.mean == pytest.approx(-1 / 6)
    worse_by = found.l1_difference_by_dimension
    assert (worse_by[0].mean, worse_by[2].mean) == (0, 0)
    # Half a bin of rounding either way, on one frame of two, in a dimension two units wide to a normalised one.
    assert worse_by[1].mean == pytest.approx(3 * WIDTH * 2 / 2, abs=WIDTH * 2 / 2)
    assert compare(predictions(ids), predictions(ids), facts(["a", "b"]), TOKENS).against_recorded is None


def test_drift_adds_up_bias_and_averages_noise() -> None:
    frames = 40
    reference = predictions(np.full((frames, DIMS), 350))
    biased, wavering = reference.free.copy(), reference.free.copy()
    biased[:, 0] -= 1
    wavering[::2, 0] -= 1
    wavering[1::2, 0] += 1
    wavering[:, 2] -= 1
    one = WIDTH / 2  # a bin in ranges q99 - q01
    (found,) = compare(reference, predictions(biased), facts(["a"] * frames), TOKENS).drift
    assert (found.window, found.windows) == (10, 31), "no episode has 50 steps"
    assert (found.mean, found.p95) == pytest.approx((10 * one, 10 * one))
    assert found.bias_by_dimension == pytest.approx([10 * one, 0, 0])
    assert found.spread_by_dimension == pytest.approx([0, 0, 0], abs=1e-12)
    (noisy,) = compare(reference, predictions(wavering), facts(["a"] * frames), TOKENS).drift
    assert noisy.mean == pytest.approx(0, abs=1e-12), "the gripper's command does not add up"
    assert noisy.bias_by_dimension[2] == pytest.approx(10 * WIDTH)


def test_drift_needs_steps_in_a_row() -> None:
    reference = predictions(np.full((40, DIMS), 350))
    gaps = compare(reference, reference, facts(["a"] * 40, steps=list(range(0, 80, 2))), TOKENS).drift
    assert gaps == []
    holed = [*range(12), *range(20, 48)]
    (found,) = compare(reference, reference, facts(["a"] * 40, steps=holed), TOKENS).drift
    assert (found.window, found.windows) == (10, 3 + 19)


def test_phases_by_gripper() -> None:
    opening = np.array([1.0] * 10 + [0.0] * 12 + [1.0, 1.0])
    recorded = np.column_stack([np.zeros((24, 2)), opening])
    episodes = ["a"] * 22 + ["b"] * 2
    found = phases_by_gripper(episodes, [*range(22), 0, 1], [STATISTICS] * 24, recorded)
    assert found == ["free motion"] * 5 + ["gripper change"] * 11 + ["contact"] * 6 + ["free motion"] * 2
    ids = predictions(np.full((24, DIMS), 350))
    by_phase = compare(ids, ids, facts(episodes, [*range(22), 0, 1], recorded), TOKENS).by_phase
    assert {name: part.frames for name, part in by_phase.items()} == {
        "free motion": 7,
        "gripper change": 11,
        "contact": 6,
    }


def test_frame_facts() -> None:
    def frame(episode: str | None, step: int | None, action: tuple[float, ...] | None) -> Frame:
        return Frame(Path(f"{episode}{step}.png"), "go", None, episode, step, action)

    whole = [frame("a", 3, (0.0, 1.0, 1.0)), frame("a", 4, (0.0, 1.0, 0.0)), frame("b", None, (0.0, 1.0, 1.0))]
    found = FrameFacts.of(whole, [STATISTICS] * 3)
    assert (found.episodes, found.steps, found.dims) == (["a", "a", "b"], [3, 4, 0], ("0", "1", "2"))
    assert found.recorded is not None
    assert found.recorded.shape == (3, 3)
    assert FrameFacts.of([*whole[:2], frame("b", None, None)], [STATISTICS] * 3).recorded is None
    assert set(FrameFacts.of([*whole[:2], frame("b", None, (0.0,))], [STATISTICS] * 3).phase) == {"unknown"}


def test_two_candidates() -> None:
    reference = predictions(np.full((40, DIMS), 350))
    worse, better = reference.free.copy(), reference.free.copy()
    worse[:12, 0] += 1
    better[10:14, 1] += 1
    frames = facts(names(40))
    found = compare_candidates(reference, predictions(worse), predictions(better), frames, TOKENS)
    assert found.exact_action_difference.mean == pytest.approx(8 / 40)
    assert found.teacher_forced_difference.mean == pytest.approx(8 / 40 / DIMS)
    nats = [compare(reference, predictions(tokens), frames, TOKENS).kl.overall.mean for tokens in (worse, better)]
    assert found.kl_difference.mean == pytest.approx(nats[1] - nats[0])
    assert found.kl_difference.mean < 0, "the better one is nearer to the reference"
    same = compare_candidates(reference, predictions(worse), predictions(worse), frames, TOKENS)
    assert same.exact_action_difference.low < 0 < same.exact_action_difference.high


def flat(value: object, path: str = "") -> dict[str, float]:
    """Numbers of a nested result by where they stand; None as -1."""
    if isinstance(value, dict):
        return {key: number for name, part in value.items() for key, number in flat(part, f"{path}.{name}").items()}
    if isinstance(value, (list, tuple)):
        return {key: number for i, part in enumerate(value) for key, number in flat(part, f"{path}.{i}").items()}
    return {path: -1.0 if value is None else float(value)} if not isinstance(value, str) else {}  # type: ignore[arg-type]
