"""The model card of one candidate, in Markdown with the front matter that the Hugging Face Hub reads.

Stands beside an artifact's hashed files, never among them: it reports a measurement, with its date and machine.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Final

from edge_vla.bench.reports import agreement_tables, performance_tables, tables, text
from edge_vla.bench.reports.markdown import escaped, markdown_table, unpublishable, verdict
from edge_vla.bench.result import Candidate, Result
from edge_vla.errors import UsageError

HUB_ID: Final = re.compile(r"([\w.-]+/[\w.-]+)(@[\w./-]+)?")


def model_card(result: Result, candidate_name: str) -> str:
    """Raises UsageError if the result has no such candidate."""
    candidate = next((row for row in result.candidates if row.name == candidate_name), None)
    if candidate is None:
        names = [row.name for row in result.candidates]
        raise UsageError(f"no candidate {candidate_name!r} in this result: choose one of {names}")
    # Only this candidate's figures, beside the reference and its floors.
    own = dataclasses.replace(
        result,
        candidates=[candidate],
        peers=[],
        gates=[gate for gate in result.gates if gate.system == candidate_name],
    )
    return "\n".join([*_front_matter(own, candidate), *_body(own, candidate)]).rstrip() + "\n"


def _front_matter(result: Result, candidate: Candidate) -> Iterator[str]:
    """YAML; JSON strings are YAML strings."""
    yield from ("---", "license: other", "license_name: same-as-base-model")
    base = HUB_ID.fullmatch(result.reference.name)
    if base:
        yield from (f"base_model: {json.dumps(base[1])}", "base_model_relation: quantized")
    else:
        yield "# The base model was not given by its Hub id: add base_model, and base_model_relation: quantized"
    yield from ("library_name: edge-vla", "pipeline_tag: robotics", "tags:")
    bits = candidate.artifact.recipe.get("bits")
    for tag in ("robotics", "vla", "openvla", "edge-vla", *([f"int{bits}"] if bits in (4, 8) else [])):
        yield f"- {tag}"
    yield "---"


def _body(result: Result, candidate: Candidate) -> Iterator[str]:
    artifact, reference, frames = candidate.artifact, result.reference, result.frames
    source = escaped(" + ".join([reference.name, *reference.adapters]))
    yield from ("", f"# {escaped(artifact.name)}", "")
    yield from (f"**{escaped(result.model.name)}**: {escaped(result.model.scope)}", "")
    yield from (
        "## What it is",
        "",
        f"An edge-vla artifact of {source}: {text.size(artifact.disk_bytes)} on disk, identity "
        f"`{artifact.identity}`. `edge-vla verify DIR` checks every file against its hash.",
        "",
        "The weights derive from the base model's and stay under its licence (OpenVLA-7B's language model is Llama 2, "
        "whose community licence applies). edge-vla itself is Apache-2.0.",
    )
    yield from ("", "## How it was made", "", "Recipe:" if artifact.recipe else "The recipe was not recorded.", "")
    for key, value in artifact.recipe.items():
        yield f"- {escaped(key)}: {escaped(text.value_of(value))}"
    yield from ("", "## Measured", "", f"{verdict(result)} {unpublishable(result)}".strip(), "")
    yield (
        f"Agreement is with the {escaped(reference.dtype)} reference on {text.count(frames.count, 'frame')} of "
        f"{text.count(frames.episodes, 'episode')} ({escaped(frames.name)}, {frames.source}); intervals are 95 %, "
        "resampling episodes. A floor is the reference against itself after a change that should not matter."
    )
    for found in (
        tables.gates(result),
        tables.summary(result),
        agreement_tables.agreement(result),
        performance_tables.latency(result),
        tables.closed_loop(result),
        tables.non_inferiority(result),
    ):
        if found:
            yield from ("", f"### {escaped(found.title)}", "", *markdown_table(found))
    yield from ("", "## Limits", "", *_limits(result, candidate))
    yield from ("", "## How to reproduce", "", *_reproduce(result))


def _limits(result: Result, candidate: Candidate) -> Iterator[str]:
    yield f"- {escaped(result.model.scope)}"
    yield "- Agreement with the reference does not prove skill: where the reference is wrong, so is this."
    if result.frames.source == "synthetic":
        yield "- The frames are synthetic: agreement on a robot's own images may differ."
    if candidate.closed_loop is None:
        yield "- Closed-loop success was not measured."
    for gate in result.gates:
        if gate.passed is not True:
            yield f"- {escaped(tables.gate_name(gate))}: {tables.VERDICTS[gate.passed]} ({escaped(gate.why)})."
    for note in result.notes:
        yield f"- {escaped(note)}"


def _reproduce(result: Result) -> Iterator[str]:
    one = result.provenance
    yield "    " + " ".join(one.command.split())
    yield ""
    yield (
        f"Commit `{escaped(one.commit or 'unknown')}`, edge-vla {escaped(one.edge_vla)}, torch {escaped(one.torch)}, "
        f"{escaped(one.device)}, {one.threads} threads, {escaped(one.time)}. Frames: sha256 `{result.frames.sha256}`; "
        f"reference: `{result.reference.identity}`."
    )
