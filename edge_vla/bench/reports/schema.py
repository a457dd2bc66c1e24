"""The published shape of a result, and whether a result has it.

The schema is JSON Schema 2020-12 in `result.schema.json` beside this file, so that an installed package carries it.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from edge_vla.errors import UsageError

log = logging.getLogger(__name__)

SCHEMA: Final = Path(__file__).with_name("result.schema.json")
SHOWN = 5


class ResultError(ValueError):
    """A result that does not have the published shape: a bug of whoever assembled it, not of the user."""


@cache
def schema() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return loaded


def serialised(result: Mapping[str, Any]) -> str:
    """JSON text; NaN and infinity, which JSON has not, are refused."""
    try:
        return json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ResultError(f"the result is not JSON: {error}") from error


def validate(result: Mapping[str, Any]) -> None:
    """Raise ResultError, naming each place that does not fit.

    Without the `jsonschema` package only version, kind and the top-level keys are checked, and a warning says so.
    """
    found = [_foreign(key) for key in sorted(set(result) - set(schema()["properties"]))]
    found += [f"{key} is missing" for key in schema()["required"] if key not in result]
    found += [
        f"{key}: {result[key]!r} instead of {schema()['properties'][key]['const']!r}"
        for key in ("version", "kind")
        if key in result and result[key] != schema()["properties"][key]["const"]
    ]
    try:
        jsonschema = importlib.import_module("jsonschema")
    except ImportError:
        log.warning("result checked at its top level only: pip install 'edge-vla[bench]' brings jsonschema")
    else:
        # A round trip first: tuples become lists, as they will in the file.
        document = json.loads(serialised(result))
        whole = jsonschema.Draft202012Validator(schema()).iter_errors(document)
        # Of alternatives that all fail, the one that was meant.
        errors = [importlib.import_module("jsonschema.exceptions").best_match([error]) for error in whole]
        found = [f"{error.json_path}: {_short(error.message)}" for error in errors]
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise ResultError(f"the result does not fit {SCHEMA.name}: {'; '.join(found[:SHOWN])}{more}")


def read(path: Path) -> dict[str, Any]:
    """A result from its file, or from the directory it was written to. Raises UsageError if it is none."""
    file = path / "result.json" if path.is_dir() else path
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UsageError(f"{file} is not a readable result: {error}") from error
    if not isinstance(result, dict):
        raise UsageError(f"{file} is not a result of edge-vla bench")
    try:
        validate(result)
    except ResultError as error:
        raise UsageError(f"{file}: {error}") from error
    return result


def _foreign(key: str) -> str:
    return f"{key} is not a key of a result"


def _short(message: str, most: int = 200) -> str:
    return message if len(message) <= most else message[: most // 2] + " … " + message[-most // 2 :]
