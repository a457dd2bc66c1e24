"""The JSON Schema of a bench result, generated from its dataclasses: `python -m docs.schema` writes it.

A test fails when `docs/result.schema.json` is stale.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from edge_vla.bench.result import VERSION, Result
from edge_vla.files import write_whole

SCHEMA: Final = Path(__file__).with_name("result.schema.json")


def result_schema() -> dict[str, Any]:
    """JSON Schema 2020-12. Objects are closed, as the reader refuses unknown keys."""
    schema = msgspec.json.schema(Result)
    for definition in schema["$defs"].values():
        if "properties" in definition:
            definition["additionalProperties"] = False
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:edge-vla:bench-result:{VERSION}",
        "title": f"edge-vla bench result, version {VERSION}",
    }
    return head | schema


def written(schema: Mapping[str, Any]) -> str:
    """JSON with one property a line."""
    definitions = ",\n".join(f" {json.dumps(name)}: {_definition(one)}" for name, one in schema["$defs"].items())
    head = json.dumps({**schema, "$defs": {}}, indent=1)
    return head.replace('"$defs": {}', f'"$defs": {{\n{definitions}\n }}') + "\n"


def _definition(one: Mapping[str, Any]) -> str:
    parts = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in one.items() if key != "properties"]
    lines = [f"   {json.dumps(name)}: {json.dumps(value)}" for name, value in one.get("properties", {}).items()]
    parts += ['  "properties": {\n' + ",\n".join(lines) + "\n  }"] if lines else []
    return "{\n" + ",\n".join(parts) + "\n }"


if __name__ == "__main__":
    write_whole(SCHEMA, written(result_schema()))
