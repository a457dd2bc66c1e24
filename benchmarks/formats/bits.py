"""What a budget buys on the demo policy, on unseen frames: `python -m benchmarks.formats.bits --work DIR --out FILE`.

Frames, floor and figures are those of `benchmarks.formats.methods`. Three questions: does mixing pay at int4's
linears, does it pay at about three bits, and what do the towers' bytes buy once they may be traded for the decoder's?
The towers are three quarters of this policy and a fifth of OpenVLA, so the last is also asked in OpenVLA's proportion:
with the bits a weight that int8 towers free there.
"""

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.demo_policy import episodes
from benchmarks.formats.methods import FLOOR, SPLITS, WORLD, Judged
from edge_vla.artifact import EVIDENCE, Artifact
from edge_vla.bench.provenance import environment
from edge_vla.checkpoint import open_checkpoint
from edge_vla.data import read_frames
from edge_vla.demo import BASE
from edge_vla.errors import EdgeVLAError
from edge_vla.export import Recipe, export
from edge_vla.export.preflight import fixed_bytes
from edge_vla.files import write_whole
from edge_vla.quant import BYTE, Scheme, stored_bytes
from edge_vla.spec import OPENVLA_7B, PolicySpec

LOG: Final = logging.getLogger("benchmarks.formats.bits")
GROUP: Final = 128
KEPT: Final = (
    "bits_per_weight",
    "predicted_kl",
    "predicted_kl_mixed",
    "predicted_kl_same",
    "departures_kept",
    "vision",
)


def recipes(spec: PolicySpec) -> Mapping[str, tuple[Recipe, str]]:
    """Each recipe, and the name of what it is compared with."""
    shapes = spec.decoder.linears().values()
    linears = spec.decoder.layers * sum(stored_bytes(Scheme.INT4, shape, GROUP) for shape in shapes)
    bits = 4 + 16 / GROUP
    return {
        "int4": (Recipe(method="gptq"), FLOOR),
        "mixed 4.125": (Recipe(method="gptq", bits_per_weight=bits), "int4"),
        "mixed, int4's whole bytes": (Recipe(method="gptq", budget=linears + fixed_bytes(spec, 16)), "int4"),
        "mixed, int8 towers, OpenVLA's proportion": (
            Recipe(method="gptq", bits_per_weight=bits + freed(OPENVLA_7B), vision_bits=8),
            "int4",
        ),
        "int3": (Recipe(bits=3, method="gptq"), "int4"),
        "mixed 3.25": (Recipe(method="gptq", bits_per_weight=3.25), "int3"),
        "mixed 3.5": (Recipe(method="gptq", bits_per_weight=3.5), "int3"),
    }


def freed(spec: PolicySpec) -> float:
    """Bits for each weight of the decoder's linears, where towers and projector go from 16 bits to 8."""
    weights = spec.decoder.layers * sum(outer * inner for outer, inner in spec.decoder.linears().values())
    return BYTE * (fixed_bytes(spec, 16) - fixed_bytes(spec, 8)) / weights


def measure(work: Path, limit: int | None) -> dict[str, Any]:
    """Export and judge every recipe; what is in `work` is taken as it is."""
    frames, calibration = (
        read_frames(work / which) if (work / which).exists() else episodes.frames(name, which, work / which)
        for name, which in SPLITS
    )
    chosen = recipes(open_checkpoint(BASE).config.spec)
    for name, (recipe, _) in chosen.items():
        if not (work / name).exists():
            export(BASE, work / name, recipe, (), calibration)
            LOG.info("%s: exported", name)
    judged = Judged(frames[:limit], work)
    for name, (_, against) in chosen.items():
        judged.judge(name, work / name, against)
        judged.rows[name] |= _spent(work / name)
    return {
        "version": 1,
        "kind": "mixed bits",
        "environment": environment(),
        "model": f"the demo policy, world {WORLD}",
        "frames": len(judged.frames),
        "episodes": len(set(judged.names)),
        "rows": judged.rows,
    }


def _spent(directory: Path) -> dict[str, Any]:
    """The bytes of an artifact, and where its budget went."""
    found: dict[str, Any] = {"bytes": sum(entry["size"] for entry in Artifact(directory).manifest.files.values())}
    evidence = directory / EVIDENCE / "sensitivity.json"
    if evidence.exists():
        report = json.loads(evidence.read_text(encoding="utf-8"))
        forms = {f"{linear['layer']} {linear['name']}": linear["form"] for linear in report["linears"]}
        found["spent"] = {key: report[key] for key in KEPT} | {"forms": forms}
    return found


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.formats.bits", description=__doc__)
    parser.add_argument("--limit", type=int, help="only the first so many frames")
    parser.add_argument("--work", type=Path, required=True, help="where frames, artifacts and answers are kept")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(words)
    logging.basicConfig(format="%(asctime)s %(message)s")
    for name in ("benchmarks.formats.bits", "benchmarks.formats.methods"):
        logging.getLogger(name).setLevel(logging.INFO)
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    write_whole(given.out, json.dumps(measure(given.work, given.limit), indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except EdgeVLAError as error:
        sys.exit(f"error: {error}")
