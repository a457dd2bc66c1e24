"""The result of a bench before anything was measured: what was asked, of which files, and a row for each side."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edge_vla.artifact import EVIDENCE, Artifact
from edge_vla.bench import gates, predictions
from edge_vla.bench.leakage import calibration_frames_among
from edge_vla.bench.peers import PEERS
from edge_vla.bench.provenance import environment
from edge_vla.device import sensors
from edge_vla.quant import stored_bytes

if TYPE_CHECKING:
    from edge_vla.bench.run import Run

VERSION: Final = 2
SENSITIVITY: Final = 2  # the version of a mixed export's evidence that is understood


def empty(run: Run) -> dict[str, Any]:
    """The result before anything was measured."""
    name = run.plan.model or Path(run.reference.source).name
    given = run.reference.frames is not None
    return {
        "version": VERSION,
        "kind": "bench",
        "name": run.plan.title or f"{', '.join(run.names())} against {name}",
        "model": {"name": name, "speaks_for": f"These figures are about {name} and speak for no other model."},
        "environment": {**environment(), **sensors.device_state()},
        "frames": {
            "source": "given" if given else "synthetic",
            "name": run.directory.name if given else "synthetic",
            "count": len(run.frames),
            "episodes": len({frame.episode or frame.image.name for frame in run.frames}),
            "sha256": predictions.frames_hash(run.frames),
            "by_phase": dict(Counter(run.about().phase)),
        },
        "reference": {
            "name": Path(run.reference.source).name,
            "adapters": [Path(adapter).name for adapter in run.reference.adapters],
            "identity": predictions.identity(run.files, run.checkpoint),
            "dtype": "bf16",
        },
        "reference_measured": {},
        "gates_declared": gates.declared(run.plan.trial),
        "floors": {},
        "candidates": [_candidate(label, Artifact(path), run) for label, path in run.names().items()],
        "peers": [
            {"name": peer, "what": PEERS[peer].described(run.plan.peer_frames), "ran": True, "why_not": None}
            for peer, _ in run.plan.peers
        ],
        "limits": None,
        "gates": [],
        "notes": _notes(run),
    }


def _notes(run: Run) -> list[str]:
    """What a reader must know before the first figure."""
    asked, notes = run.reference.limit, list[str]()
    if asked and asked > len(run.frames):
        notes.append(f"{asked} frames were asked for, {len(run.frames)} are there")
    for name, path in run.names().items():
        made_from = Artifact(path).manifest.source.get("files")
        if made_from != list(map(dict, run.files)):
            notes.append(
                f"{name} was made from other files than this reference: another policy, or a merged copy of it"
            )
    return notes


def _candidate(name: str, artifact: Artifact, run: Run) -> dict[str, Any]:
    manifest = artifact.manifest
    linears = [linear for layer in manifest.layers for linear in layer.values()]
    weights = sum(linear.shape[0] * linear.shape[1] for linear in linears)
    stored = sum(stored_bytes(linear.scheme, linear.shape, linear.group) for linear in linears)
    return {
        "name": name,
        **dict.fromkeys(("agreement", "latency", "memory", "closed_loop")),
        "worst_frames": [],
        "artifact": {
            "name": artifact.directory.resolve().name,
            "identity": artifact.identity,
            "recipe": dict(manifest.recipe),
            "disk_bytes": sum(entry["size"] for entry in manifest.files.values()),
            "bits_per_weight": round(8 * stored / weights, 3),
            "sensitivity": _sensitivity(artifact),
            "calibration_frames_among_these": calibration_frames_among(artifact, run.frames, run.config),
            "layer_errors": {
                str(index): {linear: entry.error for linear, entry in layer.items()}
                for index, layer in enumerate(manifest.layers)
            },
        },
    }


def _sensitivity(artifact: Artifact) -> Any:
    """What a mixed export kept about its bits; None for others, and where it is not of this version's shape."""
    try:
        report = json.loads((artifact.directory / EVIDENCE / "sensitivity.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) and report.get("version") == SENSITIVITY else None
