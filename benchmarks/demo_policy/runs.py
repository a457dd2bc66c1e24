"""A training run on disk: its configuration, its state, its log.

A save is written beside, synced and renamed, so that an interrupted one leaves the last good state. A state of another
configuration or version is refused. Knows nothing of what is trained.
"""

import contextlib
import json
import math
import os
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from edge_vla.errors import CheckpointError, ResourceError, UsageError
from edge_vla.files import write_whole

VERSION: Final = 1
# What torch's reader raises on a file that is cut short, overwritten, or not its own.
BROKEN: Final = (
    *(RuntimeError, EOFError, ValueError, OSError, LookupError, TypeError),
    *(pickle.UnpicklingError, zipfile.BadZipFile, zlib.error),
)


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Atomically. A full disk leaves the previous file in place and raises ResourceError."""
    beside = path.with_suffix(".writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            torch.save({**state, "version": VERSION}, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except (OSError, RuntimeError) as error:
        raise ResourceError(f"{path}: cannot save ({error}); the last good state is kept") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def load(path: Path) -> dict[str, Any]:
    """The state of a run. CheckpointError for a file that is missing, damaged or of another version."""
    try:
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:  # torch itself does not check the checksums
                raise CheckpointError(f"{path} is not a readable training state: {damaged} has changed")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: expected a training run's state there") from error
    except BROKEN as error:
        raise CheckpointError(f"{path} is not a readable training state: {error}") from error
    if not isinstance(state, dict) or state.get("version") != VERSION:
        found = state.get("version") if isinstance(state, dict) else None
        raise CheckpointError(f"{path}: version {found!r}, expected {VERSION}: start the run again with this code")
    return state


def resume(path: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state of a run to continue, or None if there is none yet."""
    if not path.exists():
        return None
    state = load(path)
    if state["config"] != dict(config):
        changed = sorted(key for key in {*config, *state["config"]} if config.get(key) != state["config"].get(key))
        was, now = ({key: source.get(key) for key in changed} for source in (state["config"], config))
        raise UsageError(
            f"{path.parent} was started with {was}, got {now}: continue with the same settings, or use another --run"
        )
    return state


def load_averaged(run: Path, module: nn.Module) -> None:
    """The averaged weights of a run into a module. Weights that the run did not train stay as they are."""
    module.load_state_dict({**module.state_dict(), **load(run / "state.pt")["averaged"]})


def log(path: Path, row: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(row)) + "\n")
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}; the last good state is kept") from error


def trim(path: Path, step: int) -> None:
    """Drop log rows of steps that a resumed run will repeat, and a half-written last row."""
    if not path.exists():
        return
    rows = [line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
    write_whole(path, "".join(row + "\n" for row in rows))


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return math.inf
