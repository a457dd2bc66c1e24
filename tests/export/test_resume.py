"""A killed export resumes where it stopped, with the same bits, and only if it is the same export."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from edge_vla import typed_json
from edge_vla.artifact import Artifact
from edge_vla.errors import ResourceError, UsageError
from edge_vla.export import Recipe, Silent, export
from edge_vla.export.journal import JOURNAL, VERSION, ExportKey, Journal
from edge_vla.export.units import FramesEmbedded, LayerForwarded, LayerWritten
from tests.export.crash import KEY, RECIPE, SOURCE, Stage

EVERY: int = 40 if "EDGE_VLA_ALL_KILLS" not in os.environ else 1
KILLS: int = 8 if "EDGE_VLA_ALL_KILLS" not in os.environ else 200


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    import edge_vla.export.vision

    traced = edge_vla.export.vision.write_graph
    yield Stage(tmp_path_factory.mktemp("stage"))
    edge_vla.export.vision.write_graph = traced


class Stops(Silent):
    """Presses Ctrl-C at the n-th report, and keeps how many steps of each stage were done when it began."""

    def __init__(self, n: int = 10**9) -> None:
        self.n, self.reports, self.done = n, 0, dict[str, int]()

    def stage(self, name: str, steps: int, done: int = 0) -> None:
        self.done[name] = done
        self.step(name)

    def step(self, detail: str) -> None:
        self.reports += 1
        if self.reports == self.n:
            raise KeyboardInterrupt


def test_kill_points(stage: Stage) -> None:
    """Every 40th; all of them with EDGE_VLA_ALL_KILLS=1 or `python -m tests.export.crash --named`."""
    names = stage.events()
    assert len(names) > 200
    assert {name.rpartition(" ")[2] for name in names} >= {"save_file", "fsync", "rename", "replace", "write_bytes"}
    for number in [*range(0, len(names), EVERY), len(names) - 1]:
        stage.killed_at(number)


@pytest.mark.slow
def test_random_kills(stage: Stage) -> None:
    assert sum(stage.killed_randomly(KILLS, random.Random(0), 2.0)) >= KILLS


def test_ctrl_c_keeps_what_is_done_and_the_next_export_says_where_it_resumes(stage: Stage, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        export(SOURCE, out, RECIPE, frames=stage.frames, progress=Stops(10))  # after the first rounded layer
    assert not out.exists()
    before = (tmp_path / "out.partial" / JOURNAL).read_text(encoding="utf-8").splitlines()
    assert "LayerWritten" in {json.loads(line).get("unit") for line in before}
    again = Stops()
    artifact = export(SOURCE, out, RECIPE, frames=stage.frames, progress=again)
    assert again.done["decoder"] == 1
    assert artifact.identity == stage.identity
    after = (out / JOURNAL).read_text(encoding="utf-8").splitlines()
    assert after[: len(before)] == before, "nothing was done twice"
    units = [(line["unit"], line["data"]["layer"]) for line in map(json.loads, after[1:])]
    assert len(set(units)) == len(units)


def test_memory_that_runs_out_keeps_what_is_done(stage: Stage, tmp_path: Path) -> None:
    """As torch says it, which is no MemoryError."""

    class RunsOut(Stops):
        def step(self, detail: str) -> None:
            try:
                super().step(detail)
            except KeyboardInterrupt:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory") from None

    out = tmp_path / "out"
    with pytest.raises(RuntimeError, match="allocate"):
        export(SOURCE, out, RECIPE, frames=stage.frames, progress=RunsOut(10))
    again = Stops()
    assert export(SOURCE, out, RECIPE, frames=stage.frames, progress=again).identity == stage.identity
    assert again.done["decoder"] == 1


@pytest.mark.slow
def test_a_full_disk_at_any_call_is_reported_and_survived(stage: Stage) -> None:
    """Every 40th; all of them with `python -m tests.export.crash --failing`."""
    names = stage.events()
    before = [number for number, name in enumerate(names) if name.startswith("before")]
    drops = [number for number in before if names[number] == "before unlink"]
    for number in [*before[:: EVERY // 2 or 1], *drops[:1], before[-1]]:
        stage.failing_at(number)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (dataclasses.replace(RECIPE, bits=8), "recipe.bits was 4, now 8"),
        (dataclasses.replace(RECIPE, seed=1), "recipe.seed was 0, now 1"),
        (dataclasses.replace(RECIPE, calibration_frames=9), "calibration was"),
    ],
)
def test_another_export_is_refused(stage: Stage, tmp_path: Path, other: Recipe, words: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        export(SOURCE, out, RECIPE, frames=stage.frames, progress=Stops(4))
    with pytest.raises(UsageError, match="unfinished export of another kind") as caught:
        export(SOURCE, out, other, frames=stage.frames)
    assert words in str(caught.value)
    assert export(SOURCE, out, RECIPE, frames=stage.frames).identity == stage.identity, "the first can still go on"


def test_another_number_of_threads_is_refused_by_name(stage: Stage, tmp_path: Path) -> None:
    out, threads = tmp_path / "out", torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        export(SOURCE, out, RECIPE, frames=stage.frames, progress=Stops(4))
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(UsageError, match=rf"threads was {threads}, now.*OMP_NUM_THREADS={threads}"):
            export(SOURCE, out, RECIPE, frames=stage.frames)
    finally:
        torch.set_num_threads(threads)
    assert export(SOURCE, out, RECIPE, frames=stage.frames).identity == stage.identity


def key_of(partial: Path) -> ExportKey:
    """The key of an export that was interrupted."""
    header = json.loads((partial / JOURNAL).read_text(encoding="utf-8").splitlines()[0])
    return typed_json.from_json(ExportKey, header)


def test_a_damaged_file_is_made_again(stage: Stage, tmp_path: Path) -> None:
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    with pytest.raises(KeyboardInterrupt):
        export(SOURCE, out, RECIPE, frames=stage.frames, progress=Stops(10))
    layer = partial / "decoder" / "layer-000.safetensors"
    content = layer.read_bytes()
    layer.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert Journal(partial, key_of(partial)).get(LayerWritten, 0) is None
    assert export(SOURCE, out, RECIPE, frames=stage.frames).identity == stage.identity


def test_a_torn_line_was_not_finished(tmp_path: Path) -> None:
    journal, units = Journal(tmp_path, KEY), [FramesEmbedded(), LayerForwarded(layer=0)]
    for unit in units:
        journal.finish(unit, {}, {})
    whole = journal.path.read_bytes()
    for size in range(len(whole) + 1):
        journal.path.write_bytes(whole[:size])
        found = list(Journal(tmp_path, KEY).units.values())
        assert found == units[: len(found)]
        assert (len(found) == 2) == (size == len(whole))


@pytest.mark.parametrize("header", ['{"journal": 1, "recipe": {}}', '{"journal": 3}', "{}", "[]"])
def test_a_journal_of_another_version_is_refused_with_the_remedy(header: str, stage: Stage, tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    (partial / "evidence").mkdir(parents=True)
    (partial / JOURNAL).write_text(header + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match=rf"expected {VERSION}\. Finish it with .* or remove it"):
        export(SOURCE, tmp_path / "out", RECIPE, frames=stage.frames)
    assert (partial / JOURNAL).read_text(encoding="utf-8") == header + "\n", "it is left as it was"


@pytest.mark.parametrize("change", [{"unit": "Nap"}, {"data": {"layers": 3}}, {"files": {"a": 1}}])
def test_a_line_that_is_not_understood_was_not_finished(change: dict[str, object], tmp_path: Path) -> None:
    journal = Journal(tmp_path, KEY)
    journal.finish(FramesEmbedded(), {}, {})
    header, line = journal.path.read_text(encoding="utf-8").splitlines()
    journal.path.write_text(f"{header}\n{json.dumps({**json.loads(line), **change})}\n", encoding="utf-8")
    assert not Journal(tmp_path, KEY).units


def test_a_disk_that_fills_keeps_the_journal(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import edge_vla.export.writer as writer

    count = [0]

    def fails(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None) -> None:
        count[0] += 1
        if count[0] == 9:
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(writer, "save_file", fails)
        with pytest.raises(ResourceError, match="No space left"):
            export(SOURCE, out, RECIPE, frames=stage.frames)
    assert not out.exists()
    assert export(SOURCE, out, RECIPE, frames=stage.frames).identity == stage.identity


def test_same_bits_elsewhere(stage: Stage, tmp_path: Path) -> None:
    """Another directory, locale, time zone and hash seed; the frames moved too."""
    shutil.copytree(stage.frames[0].image.parent, tmp_path / "frames elsewhere")
    script = (
        "import sys, shutil, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "import edge_vla.export.vision as vision\n"
        "vision.write_graph = lambda spec, weights, graph: shutil.copyfile(sys.argv[3], graph)\n"
        "from edge_vla.export import export\n"
        "from edge_vla.data import read_frames\n"
        "from tests.export.crash import RECIPE, SOURCE\n"
        "print(export(SOURCE, Path(sys.argv[1]), RECIPE, frames=read_frames(Path(sys.argv[2]))).identity)"
    )
    root = Path(__file__).parents[2]
    env = {**os.environ, "TZ": "Pacific/Auckland", "LC_ALL": "C", "PYTHONHASHSEED": "7", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "an other"), str(tmp_path / "frames elsewhere"), stage.graph],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip().splitlines()[-1] == stage.identity


def test_the_record_stays(stage: Stage) -> None:
    whole = stage.folder / "whole"
    recipe = Artifact(whole).manifest.recipe
    assert recipe.method == "gptq"
    assert recipe.calibration is not None
    assert recipe.calibration.frames == RECIPE.calibration_frames
    recorded = json.loads((whole / "evidence" / "calibration.json").read_text(encoding="utf-8"))
    assert recorded["sha256"] == recipe.calibration.sha256
    assert not (whole / "scratch").exists()
