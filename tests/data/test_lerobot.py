"""LeRobot datasets of either layout give the frames that a plain folder would; what cannot be read is said."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

import edge_vla.data.lerobot
from edge_vla.data import read_frames, synthetic_image
from edge_vla.data.lerobot import INFO
from edge_vla.errors import BackendError, EdgeVLAError, FrameError, UsageError
from edge_vla.export import Recipe, export

pytest.importorskip("pyarrow", reason="pip install 'edge-vla[lerobot]'")

TASKS = ("open the drawer", "push the cup")
EPISODES, STEPS = 3, 5
CAMERA = "observation.images.front"


def picture(episode: int, step: int) -> bytes:
    buffer = io.BytesIO()
    synthetic_image(10 * episode + step, 40).save(buffer, format="png")
    return buffer.getvalue()


def dataset(folder: Path, version: str, stored: str = "bytes", cameras: dict[str, str] | None = None) -> Path:
    """Written as lerobot lays it out: a table an episode and tasks as lines (v2), or one table and a table (v3)."""
    import pyarrow as pa
    from pyarrow.parquet import write_table

    (folder / "meta").mkdir(parents=True)
    features = {name: {"dtype": kind, "shape": [40, 40, 3]} for name, kind in (cameras or {CAMERA: "image"}).items()}
    info = {"codebase_version": version, "fps": 5, "features": {**features, "action": {"dtype": "float32"}}}
    (folder / "meta/info.json").write_text(json.dumps(info), encoding="utf-8")
    if version.startswith("v3"):
        write_table(pa.table({"task_index": [0, 1], "__index_level_0__": list(TASKS)}), folder / "meta/tasks.parquet")
    else:
        lines = [json.dumps({"task_index": number, "task": text}) for number, text in enumerate(TASKS)]
        (folder / "meta/tasks.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = [[row(folder, stored, episode, step) for step in range(STEPS)] for episode in range(EPISODES)]
    (folder / "data/chunk-000").mkdir(parents=True)
    if version.startswith("v3"):
        table = pa.Table.from_pylist([row for part in rows for row in part])
        write_table(table, folder / "data/chunk-000/file-000.parquet", row_group_size=4)
    else:
        for number, part in enumerate(rows):
            write_table(pa.Table.from_pylist(part), folder / f"data/chunk-000/episode_{number:06d}.parquet")
    return folder


def row(folder: Path, stored: str, episode: int, step: int) -> dict[str, Any]:
    name = f"images/{CAMERA}/episode_{episode:06d}/frame_{step:06d}.png"
    if stored != "bytes":
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(episode, step))
    cell = {"bytes": picture(episode, step) if stored == "bytes" else None, "path": name}
    told = {"action": [0.01 * step] * 6 + [float(step > 2)], "episode_index": episode, "frame_index": step}
    return {**({CAMERA: cell} if stored != "files" else {}), **told, "task_index": episode % 2, "timestamp": step / 5}


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
@pytest.mark.parametrize("stored", ["bytes", "paths", "files"])
def test_frames_are_those_that_were_written(version: str, stored: str, tmp_path: Path) -> None:
    frames = read_frames(dataset(tmp_path / "set", version, stored))
    assert [(frame.episode, frame.step) for frame in frames] == [
        (f"{episode:06d}", step) for episode in range(EPISODES) for step in range(STEPS)
    ]
    for number, frame in enumerate(frames):
        episode, step = divmod(number, STEPS)
        assert frame.instruction == TASKS[episode % 2]
        assert frame.action == pytest.approx((*[0.01 * step] * 6, float(step > 2)))
        assert frame.open().tobytes() == synthetic_image(10 * episode + step, 40).tobytes()
    assert len({frame.image for frame in frames}) == len(frames)


def test_layouts_agree(tmp_path: Path) -> None:
    found = [read_frames(dataset(tmp_path / version, version)) for version in ("v2.1", "v3.0")]
    assert [[frame.sha256() for frame in frames] for frames in found] == [[f.sha256() for f in found[0]]] * 2


def test_an_export_is_calibrated_on_it(tmp_path: Path) -> None:
    frames = read_frames(dataset(tmp_path / "set", "v3.0"))
    recipe = Recipe(method="gptq", calibration_frames=8)
    artifact = export("random:openvla-tiny", tmp_path / "out", recipe, frames=frames)
    calibration = artifact.manifest.recipe.calibration
    assert calibration is not None
    assert calibration.frames == 8


def test_a_camera_is_named_where_there_are_two(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "set", "v2.1", cameras={CAMERA: "image", "observation.images.wrist": "video"})
    with pytest.raises(UsageError, match="name one, as"):
        read_frames(folder)
    assert len(read_frames(folder / "front")) == len(read_frames(folder / CAMERA)) == EPISODES * STEPS
    with pytest.raises(FrameError, match="as video, which needs a decoder: record with use_videos=False"):
        read_frames(folder / "wrist")
    with pytest.raises(UsageError, match="name one"):
        read_frames(folder / "back")


def damage_info(folder: Path) -> None:
    (folder / "meta/info.json").write_text('{"codebase_version": 3}', encoding="utf-8")


def old_version(folder: Path) -> None:
    text = (folder / "meta/info.json").read_text(encoding="utf-8")
    (folder / "meta/info.json").write_text(text.replace("v2.1", "v1.6"), encoding="utf-8")


def no_tasks(folder: Path) -> None:
    (folder / "meta/tasks.jsonl").unlink()


def unknown_task(folder: Path) -> None:
    (folder / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "go"}\n', encoding="utf-8")


def torn_table(folder: Path) -> None:
    table = folder / "data/chunk-000/episode_000001.parquet"
    table.write_bytes(table.read_bytes()[:-20])


def no_tables(folder: Path) -> None:
    for table in (folder / "data").rglob("*.parquet"):
        table.unlink()


DAMAGES = [
    (damage_info, "does not describe a LeRobot dataset"),
    (old_version, "codebase_version 'v1.6'"),
    (no_tasks, "does not say what was asked"),
    (unknown_task, "task_index 1 is not among"),
    (torn_table, "is not a Parquet file"),
    (no_tables, "holds no frames"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_what_cannot_be_read_is_said(damage: Any, words: str, tmp_path: Path) -> None:
    folder = dataset(tmp_path / "set", "v2.1")
    damage(folder)
    with pytest.raises(EdgeVLAError, match=words):
        read_frames(folder)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["shoulder_pan.pos", "elbow_flex.pos", "gripper.pos"], True),
        ({"motors": ["joint_1", "joint_2", "gripper"]}, True),
        (["x", "y", "z", "roll", "pitch", "yaw", "gripper"], False),
        ({"axes": ["x", "y", "z"]}, False),
        (None, False),
    ],
)
def test_joints_recorded_as_actions_are_said(names: object, told: bool, tmp_path: Path) -> None:
    folder = dataset(tmp_path / "set", "v2.1")
    info = json.loads((folder / INFO).read_text())
    info["features"]["action"]["names"] = names
    (folder / INFO).write_text(json.dumps(info))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        read_frames(folder)
    assert ["records joints as actions" in str(one.message) for one in seen] == [True] * told


def test_files_that_macos_leaves_are_no_tables(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "set", "v2.1")
    (folder / "data/chunk-000/._episode_000000.parquet").write_bytes(b"\x00\x05\x16\x07")
    assert len(read_frames(folder)) == EPISODES * STEPS


def test_a_cell_without_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.picture", lambda episode, step: b"no picture" if step else None)
    frames = read_frames(dataset(tmp_path / "set", "v3.0"))
    with pytest.raises(FrameError, match="not an image that Pillow can read"):
        frames[1].open()
    with pytest.raises(FrameError, match="No such file or directory, but"):
        frames[0].open()


def test_a_path_that_leads_outside(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "set", "v3.0", "paths")
    (tmp_path / "secret.png").write_bytes(picture(0, 0))
    with pytest.raises(FrameError, match="outside of the dataset"):
        edge_vla.data.lerobot._beside(folder / "data/chunk-000/file-000.parquet", "../secret.png")


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = dataset(tmp_path / "set", "v2.1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(BackendError, match=r"edge-vla\[lerobot\]"):
        read_frames(folder)
