"""A LeRobot dataset (v2.0 to v3.0) as frames: Parquet tables, pictures in their cells or beside them, tasks by number.

Needs pyarrow, and only when such a dataset is read. Pictures stay in the tables until they are opened. A camera that
was stored as video is refused, because reading it takes a decoder. Knows nothing of policies, and so not whether the
recorded actions are in a policy's units.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from PIL import Image

from edge_vla import typed_json
from edge_vla.data.frames import Frame, open_image
from edge_vla.errors import BackendError, EdgeVLAWarning, FrameError, UsageError

INFO: Final = Path("meta/info.json")
VERSIONS: Final = ("v2.", "v3.")
# As lerobot and makers of arms name joints; gripper alone names none.
JOINT: Final = re.compile(r"joint|motor_\d|shoulder|elbow|waist|forearm|wrist_(angle|rotate|flex|roll|pitch|\d)", re.I)
PLACE: Final = ("episode_index", "frame_index", "task_index")


@dataclass(frozen=True)
class Feature:
    """`names` of a vector's numbers: a list, or lists by what they belong to."""

    dtype: str
    names: object = None


@dataclass(frozen=True)
class Info:
    """What is read of meta/info.json: the format's version, and the type of each column."""

    codebase_version: str
    features: dict[str, Feature]


@dataclass(frozen=True)
class Task:
    """A line of meta/tasks.jsonl."""

    task_index: int
    task: str


@dataclass(frozen=True, kw_only=True)
class TableFrame(Frame):
    """A frame whose picture lies in a Parquet table; `image` is only its name."""

    table: Path
    column: str
    row: int

    def open(self) -> Image.Image:
        content = _cell(self.table, self.column, self.row)
        if content is None:
            raise FrameError(f"{self.table}, row {self.row}: {self.column} holds no picture")
        return open_image(self.image, io.BytesIO(content))


def find_dataset(path: Path) -> tuple[Path, str | None] | None:
    """The dataset at `path`; or, for DATASET/CAMERA, the dataset and the camera; None for neither."""
    if (path / INFO).is_file():
        return path, None
    return (path.parent, path.name) if not path.exists() and (path.parent / INFO).is_file() else None


def read_lerobot(directory: Path, camera: str | None = None) -> list[Frame]:
    """Every frame by episode and step. `camera` is a feature's name or its last part; one alone needs no naming.

    BackendError without pyarrow, UsageError for a camera that must be named, FrameError for what cannot be read.
    """
    info = _info(directory)
    column, tasks = _camera(directory, info, camera), _tasks(directory)
    if (action := info.features.get("action")) is not None:
        _warn_of_joints(directory, action.names)
    # Without what macOS puts beside each file on a foreign disk.
    tables = sorted(path for path in (directory / "data").rglob("*.parquet") if not path.name.startswith("._"))
    frames = [frame for table in tables for frame in _frames(directory, table, column, tasks)]
    if not frames:
        raise FrameError(f"{directory / 'data'} holds no frames: expected Parquet tables")
    return sorted(frames, key=lambda frame: (frame.episode or "", frame.step or 0))


def _info(directory: Path) -> Info:
    path = directory / INFO
    try:
        info = typed_json.from_json(Info, typed_json.parse(path.read_bytes()), "info", ignore_unknown=True)
    except (OSError, ValueError) as error:
        raise FrameError(f"{path} does not describe a LeRobot dataset: {error}") from error
    if not info.codebase_version.startswith(VERSIONS):
        raise FrameError(
            f"{path}: got codebase_version {info.codebase_version!r}, expected v2.0 to v3.0: convert it with lerobot"
        )
    return info


def _warn_of_joints(directory: Path, names: object) -> None:
    joints = [name for name in _flat(names) if JOINT.search(name)]
    if joints:
        warnings.warn(
            f"{directory} records joints as actions ({', '.join(joints[:3])}{', …' if len(joints) > 3 else ''}), where "
            "OpenVLA's own data sets hold how far the hand moves and turns: right only for a policy trained on joints",
            EdgeVLAWarning,
            3,
        )


def _flat(names: object) -> Iterator[str]:
    """Every name in lists and mappings of names."""
    if isinstance(names, str):
        yield names
    elif isinstance(names, Mapping | Sequence):
        for one in names.values() if isinstance(names, Mapping) else names:
            yield from _flat(one)


def _camera(directory: Path, info: Info, wanted: str | None) -> str:
    cameras = [name for name, feature in info.features.items() if feature.dtype in ("image", "video")]
    fitting = [name for name in cameras if wanted is None or wanted in (name, name.rpartition(".")[2])]
    if not cameras:
        raise FrameError(f"{directory / INFO} lists no camera")
    if len(fitting) != 1:
        raise UsageError(f"{directory} has the cameras {cameras}: name one, as {directory / cameras[0]}")
    if info.features[fitting[0]].dtype == "video":
        raise FrameError(
            f"{directory} keeps {fitting[0]} as video, which needs a decoder: record with use_videos=False, or save "
            "its frames as images with a frames.jsonl"
        )
    return fitting[0]


def _tasks(directory: Path) -> dict[int, str]:
    """Instructions by number: lines of JSON in v2, a table with the text as its index in v3."""
    lines, table = directory / "meta/tasks.jsonl", directory / "meta/tasks.parquet"
    try:
        if table.is_file():
            columns = _read(table)
            texts = next(values for name, values in columns.items() if name != "task_index")
            rows = [{"task_index": row, "task": text} for row, text in zip(columns["task_index"], texts, strict=True)]
        else:
            rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
        tasks = typed_json.from_json(list[Task], rows, "tasks", ignore_unknown=True)
    except (OSError, ValueError, KeyError, StopIteration, RecursionError) as error:
        raise FrameError(f"{table if table.is_file() else lines} lists no instructions: {error!r}") from error
    return {task.task_index: task.task for task in tasks}


def _frames(directory: Path, table: Path, column: str, tasks: Mapping[int, str]) -> Iterator[Frame]:
    names = _names(table)
    if missing := set(PLACE) - names:
        raise FrameError(f"{table} has no column {sorted(missing)[0]}: it is not a LeRobot table")
    columns = _read(table, [*PLACE, *(["action"] if "action" in names else [])])
    actions = columns.get("action") or [None] * len(columns["task_index"])
    for row, (episode, step, task, action) in enumerate(zip(*(columns[name] for name in PLACE), actions, strict=True)):
        if task not in tasks:
            raise FrameError(f"{table}, row {row}: task_index {task} is not among the tasks {sorted(tasks)}")
        picture = Path("images", column, f"episode_{episode:06d}", f"frame_{step:06d}.png")
        recorded = None if action is None else tuple(map(float, action))
        known = (tasks[task], None, f"{episode:06d}", step, recorded)
        if column in names:
            yield TableFrame(directory / picture, *known, table=table, column=column, row=row)
        else:
            yield Frame(directory / picture, *known)


@lru_cache(maxsize=4)
def _cells(table: Path, column: str, group: int) -> Sequence[Any]:
    return _read(table, [column], group)[column]


def _cell(table: Path, column: str, row: int) -> bytes | None:
    """The encoded picture of one row: bytes, or bytes and path, of which the path may be all there is."""
    metadata, group = _parquet(table).metadata, 0
    while row >= metadata.row_group(group).num_rows:
        row -= metadata.row_group(group).num_rows
        group += 1
    cell = _cells(table, column, group)[row]
    if isinstance(cell, Mapping) and cell.get("bytes") is None and isinstance(cell.get("path"), str):
        return _beside(table, cell["path"])
    content = cell.get("bytes") if isinstance(cell, Mapping) else cell
    return content if isinstance(content, bytes) else None


def _beside(table: Path, name: str) -> bytes:
    """A picture that its cell only points at; it must lie in the dataset."""
    root = next(folder for folder in table.parents if (folder / INFO).is_file()).resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise FrameError(f"{table}: the picture {name} lies outside of the dataset")
    try:
        return path.read_bytes()
    except OSError as error:
        raise FrameError(f"{path}: {error.strerror}, but {table} points at it") from error


def _names(table: Path) -> set[str]:
    return set(_parquet(table).schema_arrow.names)


def _read(table: Path, columns: Sequence[str] | None = None, group: int | None = None) -> dict[str, list[Any]]:
    file = _parquet(table)
    groups = range(file.num_row_groups) if group is None else [group]
    try:
        return dict(file.read_row_groups(list(groups), columns=columns).to_pydict())
    except (OSError, ValueError) as error:
        raise FrameError(f"{table} cannot be read: {error}") from error


def _parquet(table: Path) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise BackendError("reading a LeRobot dataset needs pyarrow: pip install 'edge-vla[lerobot]'") from error
    try:
        return ParquetFile(table)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise FrameError(f"{table} is not a Parquet file: {error}") from error
