"""The model card of one candidate, in Markdown with the front matter that the Hugging Face Hub reads.

Stands beside an artifact's hashed files, never among them: it tells of a measurement, with its date and machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from edge_vla.bench.reports import more_tables, tables, text
from edge_vla.bench.reports.markdown import escaped, markdown_table, unpublishable, verdict
from edge_vla.bench.reports.systems import Result
from edge_vla.errors import UsageError

HUB_ID: Final = re.compile(r"([\w.-]+/[\w.-]+)(@[\w./-]+)?")


def model_card(result: Result, candidate_name: str) -> str:
    """Raises UsageError if the result has no such candidate."""
    candidate = next((entry for entry in result["candidates"] if entry["name"] == candidate_name), None)
    if candidate is None:
        names = [entry["name"] for entry in result["candidates"]]
        raise UsageError(f"no candidate {candidate_name!r} in this result: it has {names}")
    # Only this candidate's figures, beside the reference and its floors.
    own = {
        **result,
        "candidates": [candidate],
        "peers": [],
        "gates": [gate for gate in result["gates"] if gate["side"] == candidate_name],
    }
    return "\n".join([*_front_matter(result, candidate), *_body(own, candidate)]).rstrip() + "\n"


def _front_matter(result: Result, candidate: Result) -> Iterator[str]:
    """JSON strings are YAML strings."""
    yield "---"
    yield "license: other"
    yield "license_name: same-as-base-model"
    base = HUB_ID.fullmatch(result["reference"]["name"])
    if base:
        yield f"base_model: {json.dumps(base[1])}"
        yield "base_model_relation: quantized"
    else:
        yield "# base_model was measured under a name that is no Hub id: add it, with base_model_relation: quantized"
    yield "library_name: edge-vla"
    yield "pipeline_tag: robotics"
    yield "tags:"
    bits = candidate["artifact"]["recipe"].get("bits")
    for tag in ("robotics", "vla", "openvla", "edge-vla", *([f"int{bits}"] if bits in (4, 8) else [])):
        yield f"- {tag}"
    yield "---"


def _body(result: Result, candidate: Result) -> Iterator[str]:
    artifact, reference = candidate["artifact"], result["reference"]
    source = escaped(" + ".join([reference["name"], *reference["adapters"]]))
    yield from ("", f"# {escaped(artifact['name'])}", "")
    yield from (f"**{escaped(result['model']['name'])}**: {escaped(result['model']['speaks_for'])}", "")
    yield from ("## What it is", "")
    yield (
        f"An edge-vla artifact of {source}: {text.size(artifact['disk_bytes'])} on disk, identity "
        f"`{artifact['identity']}`. `edge-vla verify DIR` checks every file against its hash."
    )
    yield ""
    yield (
        "The weights derive from the base model's and stay under its licence (OpenVLA-7B's language model is Llama 2, "
        "whose community licence applies). edge-vla itself is Apache-2.0."
    )
    yield from ("", "## How it was made", "")
    yield from _recipe(artifact["recipe"])
    yield from ("", "## Measured", "", f"{verdict(result)} {unpublishable(result)}".strip(), "")
    frames = result["frames"]
    yield (
        f"Agreement is with the {escaped(reference['dtype'])} reference on {text.count(frames['count'], 'frame')} "
        f"of {text.count(frames['episodes'], 'episode')} ({escaped(frames['name'])}, {frames['source']}); intervals "
        "are 95 %, resampling episodes. A floor is the reference against itself after a harmless change."
    )
    for found in (
        tables.gates(result),
        tables.summary(result),
        tables.agreement(result),
        tables.latency(result),
        more_tables.closed_loop(result),
        more_tables.non_inferiority(result),
    ):
        if found:
            yield from ("", f"### {escaped(found.title)}", "", *markdown_table(found))
    yield from ("", "## Limits", "", *_limits(result, candidate))
    yield from ("", "## How to reproduce", "", *_reproduce(result))


def _recipe(recipe: Result) -> Iterator[str]:
    yield "Recipe:" if recipe else "The recipe was not recorded."
    yield ""
    for key, value in recipe.items():
        yield f"- {escaped(key)}: {escaped(text.value_of(value))}"


def _limits(result: Result, candidate: Result) -> Iterator[str]:
    yield f"- {escaped(result['model']['speaks_for'])}"
    yield "- Agreement with the reference is no proof of skill: where the reference is wrong, so is this."
    if result["frames"]["source"] == "synthetic":
        yield "- The frames are synthetic: agreement on a robot's own pictures may differ."
    if not candidate.get("closed_loop"):
        yield "- No closed-loop success was measured."
    for gate in result["gates"]:
        if gate["passed"] is not True:
            state = "failed" if gate["passed"] is False else "not judged"
            yield f"- {escaped(tables.gate_name(gate))}: {state} ({escaped(gate['why'])})."
    for note in result["notes"]:
        yield f"- {escaped(note)}"


def _reproduce(result: Result) -> Iterator[str]:
    environment: Any = result["environment"]
    yield "    " + " ".join(environment["command"].split())
    yield ""
    yield (
        f"Commit `{escaped(environment['commit'] or 'unknown')}`, edge-vla {escaped(environment['edge_vla'])}, torch "
        f"{escaped(environment['torch'])}, {escaped(environment['device'])}, {environment['threads']} threads, "
        f"{escaped(environment['time'])}. Frames: sha256 `{result['frames']['sha256']}`; reference: "
        f"`{result['reference']['identity']}`."
    )
