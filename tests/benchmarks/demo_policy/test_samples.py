"""Training frames and statistics: labels that every bin gets, seeds that never meet evaluation."""

import itertools
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.demo_policy import samples, statistics, tokenizer
from benchmarks.demo_policy.stages import STAGES
from benchmarks.demo_policy.wordings import HELD_OUT
from edge_vla.demo import BASE
from edge_vla.demo.instructions import TEMPLATES
from edge_vla.demo.render import world
from edge_vla.demo.world import CLOSE_BELOW, EVALUATION_SEEDS, TRAINING_SEEDS


@given(st.integers(0, 2**30))
def test_a_moments_first_block_is_on_the_table(seed: int) -> None:
    state, first = samples.moment(np.random.default_rng(seed), world(1))
    assert {body.colour for body in state.bodies if body.kind == "block"} >= set(first)
    if state.held is not None:
        body = state.bodies[state.held]
        assert (body.x, body.y, body.yaw) == (state.gripper.x, state.gripper.y, state.gripper.yaw)


def test_every_dimension_moves_in_many_bins() -> None:
    actions = statistics.normalise(statistics.demonstrations())
    tokens = samples.TOKENS.encode(actions)
    assert min(len(np.unique(tokens[:, i])) for i in range(7)) >= 20


def test_statistics_are_written_as_openvla_writes_them() -> None:
    written = statistics.statistics()
    assert set(written) == {"action", "proprio", "num_transitions", "num_trajectories"}
    assert set(written["action"]) == {"mean", "std", "max", "min", "q01", "q99", "mask"}
    assert written["action"]["mask"] == [True] * 6 + [False]
    assert 0.0 <= written["action"]["min"][6] <= CLOSE_BELOW < written["action"]["max"][6] <= 1.0


def test_evaluation_seeds_are_never_trained_on() -> None:
    assert TRAINING_SEEDS.stop <= EVALUATION_SEEDS.start
    for stage in STAGES.values():
        assert stage.first_seed in TRAINING_SEEDS
        assert stage.first_seed + stage.steps * stage.batch in TRAINING_SEEDS
    assert len(TRAINING_SEEDS) >= statistics.EPISODES


def test_stages_do_not_share_frames() -> None:
    spans = sorted((s.first_seed, s.first_seed + s.steps * s.batch) for s in STAGES.values())
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


def test_held_out_sentences_are_made_of_trained_words() -> None:
    def words(templates: object) -> set[str]:
        return set(str(templates).replace("'", " ").replace(",", " ").split())

    for kind, sentences in HELD_OUT.items():
        assert not set(sentences) & set(TEMPLATES[kind])
    assert words([*HELD_OUT.values()]) <= words([*TEMPLATES.values()])


def test_the_shipped_tokenizer_is_this_one(tmp_path: Path) -> None:
    tokenizer.write(tmp_path / "tokenizer.json")
    assert (tmp_path / "tokenizer.json").read_bytes() == (BASE / "tokenizer.json").read_bytes()
