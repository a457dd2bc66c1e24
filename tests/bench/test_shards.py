"""A bench in parts: nothing is left out or done twice, and merged parts are what one process gives, to the bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_vla.bench import predictions, shards
from edge_vla.bench.closed_loop import BLOCK
from edge_vla.bench.messages import System
from edge_vla.bench.plan import ClosedLoopPlan, Plan, ReferencePlan
from edge_vla.bench.predictions import Job
from edge_vla.bench.run import bench
from edge_vla.commands.bench import place_of
from edge_vla.data import Frame, read_frames, synthetic_image, write_frames
from edge_vla.demo import BASE
from edge_vla.errors import BackendError, UsageError
from edge_vla.export import Recipe, export
from edge_vla.runtime import load
from tests.conftest import TINY


@given(st.integers(0, 500), st.integers(1, 40))
def test_parts_cover_everything_once_and_are_even(count: int, parts: int) -> None:
    found = shards.ranges(count, parts)
    assert [i for part in found for i in part] == list(range(count))
    sizes = {len(part) for part in found}
    assert len(found) == min(count, parts)
    assert 0 not in sizes
    assert not sizes or max(sizes) - min(sizes) <= 1


@given(st.lists(st.sampled_from("abc"), unique=True), st.integers(1, 90))
def test_blocks_are_the_episodes_of_one_process_in_its_order(kinds: list[str], episodes: int) -> None:
    found = [(one.kind, one.first + i) for one in shards.blocks(kinds, episodes, BLOCK) for i in range(one.count)]
    assert found == [(kind, start) for kind in kinds for start in range(episodes)]


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("frames")
    key = next(iter(load(TINY).config.statistics))
    write_frames(directory, ((Frame(Path(f"{i}.png"), f"go {i}", key), synthetic_image(i, 28)) for i in range(5)))
    return directory


def test_packed_frames_are_the_same_frames(frames: Path, tmp_path: Path) -> None:
    packed = shards.pack(read_frames(frames))
    for name, content in packed.items():
        (tmp_path / name).write_bytes(content)
    assert predictions.frames_hash(read_frames(tmp_path)) == predictions.frames_hash(read_frames(frames))
    assert [one.unnorm_key for one in read_frames(tmp_path)] == [one.unnorm_key for one in read_frames(frames)]


def test_merged_parts_are_one_process_s_predictions(
    tiny_artifacts: Mapping[int, Path], frames: Path, tmp_path: Path
) -> None:
    """Teacher-forced along another policy's tokens, as a candidate along its reference."""
    whole, int4 = System("whole", str(tiny_artifacts[16])), System("int4", str(tiny_artifacts[4]))
    along = tmp_path / "along.npz"
    predictions.predict(Job(whole, along), frames, None, None)
    predictions.predict(Job(int4, tmp_path / "one.npz"), frames, None, along)
    parts = []
    for part in shards.ranges(5, 2):
        packed = shards.pack(read_frames(frames)[part.start : part.stop])
        parts.append(shards.predict_part(int4, None, packed, shards.pack_tokens(along, part), None))
    shards.merge(parts, tmp_path / "merged.npz")
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "merged.npz") as merged:
        assert set(one) == set(merged)
        for name in one:
            assert one[name].dtype == merged[name].dtype
            np.testing.assert_array_equal(one[name], merged[name])


def test_parts_of_different_lengths_are_refused_as_one_process_does(tmp_path: Path) -> None:
    parts = []
    for dims in (7, 8):
        np.savez(tmp_path / "part.npz", free=np.zeros((2, dims)))
        parts.append((tmp_path / "part.npz").read_bytes())
    with pytest.raises(UsageError, match="different lengths: bench one --unnorm-key"):
        shards.merge(parts, tmp_path / "out.npz")


def test_a_cluster_without_ray_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_vla.commands.bench.find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"--ray needs ray: pip install 'edge-vla\[ray\]'"):
        place_of("local")
    assert place_of(None) is None


@pytest.mark.slow
def test_a_local_ray_gives_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames and episodes over Ray's processes: result.json is the same bytes, but for its provenance."""
    pytest.importorskip("ray")
    artifact = export(BASE, tmp_path / "int4", Recipe(bits=4)).directory
    environment = "edge_vla.demo.environments:world1"
    plan = Plan(profile="none", closed_loop=ClosedLoopPlan(environment, 2))
    texts = []
    for name, address in (("here", None), ("ray", "local")):
        monkeypatch.setenv("EDGE_VLA_CACHE", str(tmp_path / f"cache-{name}"))
        bench([artifact], ReferencePlan(str(BASE), limit=5), tmp_path / name, plan, place=place_of(address))
        document = json.loads((tmp_path / name / "result.json").read_text())
        del document["provenance"]
        texts.append((json.dumps(document), (tmp_path / name / "episodes-lock-step.json").read_text()))
        shutil.rmtree(artifact / "evidence", ignore_errors=True)
    assert texts[0] == texts[1]
