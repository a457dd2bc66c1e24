"""A result as a file: one writer, and one reader that knows every version ever committed.

`docs/result.schema.json` publishes the shape; `python -m docs.schema` writes it from the types.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Final

from edge_vla import typed_json
from edge_vla.bench.result import KIND, VERSION, Result
from edge_vla.bench.result_v2 import upgraded
from edge_vla.errors import UsageError
from edge_vla.files import disk_errors, write_whole

FILE: Final = "result.json"
REFUSED: Final = "result-refused.json"


class ResultError(ValueError):
    """A result that cannot be read back: a bug in what assembled it, not the user's mistake."""


def dumps(result: Result) -> str:
    """JSON text. Raises ResultError for NaN, infinity and values of another type than the field's."""
    try:
        text = _json(result, allow_nan=False)
        typed_json.from_json(Result, json.loads(text))
    except (TypeError, ValueError) as error:
        raise ResultError(f"the result cannot be written as version {VERSION}: {error}") from error
    return text


def write(result: Result, directory: Path) -> Path:
    """Write `result.json` into `directory`, which is made if need be; returns its path.

    A result that cannot be read back is kept as `result-refused.json`, and ResultError is raised.
    """
    with disk_errors(f"create {directory}"):
        directory.mkdir(parents=True, exist_ok=True)
    try:
        text = dumps(result)
    except ResultError:
        write_whole(directory / REFUSED, _json(result, allow_nan=True))
        raise
    write_whole(directory / FILE, text)
    return directory / FILE


def read(path: Path) -> Result:
    """The result in a file, or in the directory that it was written to. Raises UsageError."""
    file = path / FILE if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}; expected the result of an edge-vla bench") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not a text file; expected the result of an edge-vla bench") from error
    try:
        return loads(text)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error


def loads(text: str) -> Result:
    """A result from JSON text. Raises UsageError."""
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise UsageError(f"broken JSON: {error}; copy the file again or repeat the bench") from error
    return from_json(raw)


def from_json(raw: Any) -> Result:
    """A result of this version or of version 2, as `json.loads` returns it. UsageError names the field at fault."""
    kind = raw.get("kind") if isinstance(raw, dict) else None
    if kind != KIND:
        raise UsageError(f"kind {kind!r}, expected {KIND!r}: pass the result.json of an edge-vla bench")
    version = raw.get("version")
    if isinstance(version, int) and version > VERSION:
        raise UsageError(f"version {version}, expected at most {VERSION}: pip install --upgrade edge-vla")
    try:
        if version == 2:
            raw = upgraded(raw)
        return typed_json.from_json(Result, raw)
    except KeyError as error:
        raise UsageError(f"version 2 without {error}: repeat the bench") from error
    except ValueError as error:
        raise UsageError(f"{error}; repeat the bench with this edge-vla") from error


def _json(result: Result, *, allow_nan: bool) -> str:
    fields = dataclasses.asdict(result)
    head = {name: fields.pop(name) for name in ("version", "kind")}
    return json.dumps(head | fields, indent=1, allow_nan=allow_nan, ensure_ascii=False) + "\n"
