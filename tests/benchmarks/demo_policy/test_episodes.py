"""The recorded episodes that ship: small, disjoint, drawn again to the pixel, and loud when they cannot be."""

import gzip
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edge_vla
from benchmarks import study
from benchmarks.demo_policy import episodes
from benchmarks.demo_policy.episodes import SETS, RecordedSet
from edge_vla.data import episodes as episodes_of
from edge_vla.data import read_frames
from edge_vla.demo import ADAPTER, BASE, expert, statistics_key
from edge_vla.demo.instructions import phrase
from edge_vla.demo.record import task_kind
from edge_vla.demo.world import EVALUATION_SEEDS, FRAME_SEEDS, TRAINING_SEEDS, start
from edge_vla.errors import EdgeVLAError, FrameError, ResourceError, UsageError
from edge_vla.files import sha256_of

MANIFESTS = study.ROOT / "calibration"
NAMES = list(SETS)


@pytest.mark.parametrize("name", NAMES)
def test_a_set_is_large_enough_and_its_manifest_says_so(name: str) -> None:
    manifest = json.loads((MANIFESTS / f"{name}.json").read_text(encoding="utf-8"))
    found, chosen = episodes.splits(name), SETS[name]
    assert manifest["sha256"] == sha256_of(chosen.path)
    assert manifest["seeds"] == [chosen.seeds.start, chosen.seeds.stop]
    counts = {
        which: {"episodes": len(rows), "frames": sum(len(row.actions) for row in rows)} for which, rows in found.items()
    }
    assert manifest["splits"] == counts
    assert manifest["episodes"] == sum(count["episodes"] for count in counts.values()) >= 300
    for which in ("calibration", "evaluation"):
        assert counts[which]["episodes"] >= 100
        assert counts[which]["frames"] >= 1000
    if chosen.driver == "policy":
        for weights, folder in {"base": BASE, "adapter": ADAPTER}.items():
            for file, digest in manifest["weights"].get(weights, {}).items():
                assert digest == sha256_of(folder / file), "recorded with other weights than those that ship"


def test_they_are_small() -> None:
    assert sum(file.stat().st_size for file in episodes.RECORDED.iterdir()) < 3e6


def test_their_seeds_belong_to_nothing_else() -> None:
    spans = [chosen.seeds for chosen in SETS.values()]
    others = [TRAINING_SEEDS, FRAME_SEEDS, EVALUATION_SEEDS[:500_000], EVALUATION_SEEDS[-1:]]
    for a, b in itertools.combinations([*spans, *others], 2):
        assert a.stop <= b.start or b.stop <= a.start


def test_no_picture_is_in_two_splits() -> None:
    """Across all sets, so that calibrating on one never touches the evaluation of another."""
    found = {(name, which): set(episodes.hashes(name, which)) for name in NAMES for which, _ in episodes.SHARES}
    for a, b in itertools.combinations(found, 2):
        assert not found[a] & found[b], (a, b)


@pytest.mark.parametrize("name", NAMES)
def test_frames_are_drawn_as_they_were_recorded(name: str, tmp_path: Path) -> None:
    recorded = episodes.splits(name)["evaluation"][:4]
    frames = episodes.frames(name, "evaluation", tmp_path / "frames", episodes=4)
    assert frames == read_frames(tmp_path / "frames")
    assert [frame.action for frame in frames] == [action for row in recorded for action in row.actions]
    assert [episodes.fingerprint(frame.open()) for frame in frames] == [p for row in recorded for p in row.pictures]
    assert {frame.unnorm_key for frame in frames} == {statistics_key(SETS[name].world)}
    assert list(dict.fromkeys(episodes_of(frames))) == [SETS[name].episode(row.seed) for row in recorded]
    assert [entry.name for entry in tmp_path.iterdir()] == ["frames"]
    for row in recorded:
        _, task = start(row.seed, task_kind(row.seed))
        assert row.instruction == phrase(task, row.seed)


@pytest.mark.parametrize("name", ["world1-expert", "world2-expert"])
def test_the_experts_episodes_are_the_experts(name: str) -> None:
    for row in episodes.read(name)[:20]:
        state, task = start(row.seed, task_kind(row.seed))
        np.testing.assert_allclose(row.actions[0], expert.act(state, task), rtol=1e-12)
        assert row.outcome == "success"


@pytest.mark.parametrize(("name", "adapters"), [("world1-policy", []), ("world2-policy", [ADAPTER])])
def test_the_policys_episodes_are_the_policys(name: str, adapters: list[Path]) -> None:
    policy, chosen = edge_vla.load(BASE, dtype="bf16", adapters=adapters), SETS[name]
    row = episodes.splits(name)["evaluation"][0]
    key = statistics_key(chosen.world)
    statistics = policy.config.statistics[key]
    same = []
    for (frame, image), _ in zip(episodes.replay(chosen, row), range(6), strict=False):
        told = policy.tokens.encode(statistics.normalise(np.array(frame.action)))
        same += (np.array(policy.act(image, frame.instruction, key).tokens) == told).tolist()
    # Another kernel or processor rounds bf16 otherwise and moves near-ties; another policy moves nearly all.
    assert np.mean(same) > 0.6


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordedSet:
    """A set of three episodes in a folder of its own."""
    chosen = SETS["world1-expert"]
    small = replace(chosen, seeds=chosen.seeds[:3])
    rows = episodes.read(chosen.name)[:3]
    monkeypatch.setattr(episodes, "RECORDED", tmp_path)
    monkeypatch.setattr(episodes, "SETS", {small.name: small})
    episodes.write(small.path, small.name, rows)
    return small


def test_another_drawing_is_refused_by_episode_and_nothing_is_left(one: RecordedSet, tmp_path: Path) -> None:
    rows = episodes.read(one.name)
    which = episodes.split(one.episode(rows[1].seed))
    pictures = (*rows[1].pictures[:2], "0" * 16, *rows[1].pictures[3:])
    episodes.write(one.path, one.name, [rows[0], replace(rows[1], pictures=pictures), rows[2]])
    with pytest.raises(FrameError, match=rf"{one.episode(rows[1].seed)}, step 2: .*Pillow"):
        episodes.frames(one.name, which, tmp_path / "frames")
    assert [entry.name for entry in tmp_path.iterdir()] == [one.path.name]


def test_other_actions_are_refused(one: RecordedSet) -> None:
    row = episodes.read(one.name)[1]  # a pick: it ends as it lifts
    still = ((0.0,) * 6 + (1.0,),)
    with pytest.raises(FrameError, match="ends as 'running', expected 'success'"):
        list(episodes.replay(one, replace(row, actions=row.actions[:-1] + still)))
    with pytest.raises(FrameError, match="step 1"):
        list(episodes.replay(one, replace(row, actions=still + row.actions[1:])))


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda whole: whole[:-200],
    "not gzip": lambda whole: b"{}",
    "empty": lambda whole: gzip.compress(b""),
    "another version": lambda whole: gzip.compress(b'{"version":9,"set":"world1-expert"}\n'),
    "an episode missing": lambda whole: gzip.compress(b"\n".join(gzip.decompress(whole).splitlines()[:-1])),
    "not json": lambda whole: gzip.compress(gzip.decompress(whole)[:-20]),
    "no object": lambda whole: gzip.compress(gzip.decompress(whole) + b"[]\n"),
    "a picture too many": lambda whole: gzip.compress(gzip.decompress(whole).replace(b'tures":["', b'tures":["","')),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_index_is_refused(one: RecordedSet, how: str) -> None:
    one.path.write_bytes(DAMAGED[how](one.path.read_bytes()))
    with pytest.raises(FrameError, match="git checkout") as caught:
        episodes.read(one.name)
    assert str(one.path) in str(caught.value)


def test_a_missing_index_is_refused(one: RecordedSet) -> None:
    one.path.unlink()
    with pytest.raises(FrameError, match="missing"):
        episodes.hashes(one.name, "evaluation")


def test_what_cannot_be_written_is_refused(one: RecordedSet, tmp_path: Path) -> None:
    wrong: list[tuple[str, str, type[EdgeVLAError], str]] = [
        ("world9", "evaluation", UsageError, "choose one of"),
        (one.name, "test", UsageError, "choose one of"),
    ]
    for name, which, error, said in wrong:
        with pytest.raises(error, match=said):
            episodes.frames(name, which, tmp_path / "frames")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="exists already"):
        episodes.frames(one.name, "evaluation", tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="cannot write"):
        episodes.frames(one.name, "evaluation", tmp_path / "file" / "frames")


def test_splits_go_by_episode_and_keep_their_shares() -> None:
    names = [f"world1-expert-{seed}" for seed in range(2000)]
    found = [episodes.split(name) for name in names]
    for which, share in episodes.SHARES:
        assert abs(found.count(which) / len(names) - share / 100) < 0.03
