"""Records what exports and tokens are, byte for byte: `python -m tests.golden.make_recorded_bytes`.

`recorded_bytes.json` has the SHA-256 of every hashed file of every recipe's export, and the tokens and actions of a
few policies on recorded frames, so that a change which should move nothing can be shown to move nothing.
`--only NAME` prints one case as it is now and writes nothing. Asks only the command line and `edge_vla.load`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image

import edge_vla
from benchmarks.demo_policy.episodes import frames as draw_frames

# All that is asked of modules which may move; `draw_frames(set, split, folder, episodes)` writes a folder of frames.
from edge_vla.cli import main as run_command
from edge_vla.demo import ADAPTER, BASE
from tests.golden.openvla_tiny import cases as golden_cases
from tests.golden.openvla_tiny import write_checkpoint

RECORD: Final = Path(__file__).with_name("recorded_bytes.json")
THREADS: Final = 1  # of every export: how sums are split is part of what is summed
SHOWN: Final = 4  # frames whose tokens stand in the record, for people
PACKAGES: Final = ("torch", "numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "pillow", "safetensors")
INSTRUCTION_SETS: Final = ("avx", "amx", "fma", "f16c", "bmi", "sse", "asimd", "sve", "bf16", "i8mm")
MANIFEST_FACTS: Final = "manifest.json, but for what this machine measured"
MEASURED: Final = ("files", "golden", "vision_check")
ADDED: Final = "golden_steps"  # to manifests after these were recorded: left out, and tested by test_golden_steps.py
MANIFEST: Final = "manifest.json, but for golden frames' noise"
NOTE: Final = (
    "'anywhere' holds for every machine: rounding to nearest is one operation a weight, each rounded as IEEE 754 says, "
    "and sums nothing. 'here' hangs on how sums are split and so on processor, compiler and versions: calibration, "
    "merges, tokens, golden frames and so nearly all of the manifest. A golden frame's noise is in neither: it was "
    "measured by one of two kernels, whichever a stopwatch found the faster. All tokens are of one frame at a time. "
    "The recorded sets hold 44918 frames, which take ten minutes a policy: int4 and 16 bits "
    "answer all 8798 of the evaluation split, in both worlds; the rest every eighth or fewer, as their 'stride' says."
)


@dataclass(frozen=True)
class ExportCase:
    """One export: of `golden`, the golden tiny checkpoint, `demo`, or `adapter`, the demo policy for world 2."""

    source: str
    recipe: str
    words: tuple[str, ...]
    form: str = "artifact"
    quick: bool = False

    @property
    def name(self) -> str:
        return f"{self.source}/{self.recipe}/{self.form}"

    @property
    def calibrated(self) -> bool:
        return "--method" in self.words

    @property
    def anywhere(self) -> bool:
        """Whether its weights are the same on every machine."""
        return not self.calibrated and self.source != "adapter"


@dataclass(frozen=True)
class TokensCase:
    """Every `stride`th frame of the evaluation split of `sets`, answered by an export or, if None, the reference."""

    name: str
    export: str | None
    sets: tuple[str, ...]
    stride: int = 1
    episodes: int | None = None  # of each set; None is all
    threads: int = THREADS
    options: Mapping[str, str] = field(default_factory=dict)  # of `edge_vla.load`
    quick: bool = False


ROUNDED: Final[Mapping[str, str]] = {
    "bits16": "--bits 16",
    "int8": "--bits 8",
    "int4": "",
    "int3": "--bits 3",
    "int2": "--bits 2",
    "int4-group32": "--group 32",
    "int2-group32": "--bits 2 --group 32",
    "uint4": "--asymmetric",
    "uint4-group32": "--asymmetric --group 32",
    "w8a8": "--bits 8 --activations 8",
    "bits16-vision8": "--bits 16 --vision-bits 8",
    "int4-vision8": "--vision-bits 8",
}
LARGE_GROUPS: Final[Mapping[str, str]] = {  # the golden checkpoint's matrices hold groups of 32 alone
    "int4-group64": "--group 64",
    "int4-group128": "--group 128",
    "int3-group64": "--bits 3 --group 64",
    "uint4-group64": "--asymmetric --group 64",
}
CALIBRATED: Final[Mapping[str, str]] = {
    "gptq-int8": "--method gptq --bits 8",
    "gptq-int4": "--method gptq",
    "gptq-int3": "--method gptq --bits 3",
    "gptq-int2": "--method gptq --bits 2",
    "gptq-uint4": "--method gptq --asymmetric",
    "gptq-w8a8": "--method gptq --bits 8 --activations 8",
    "gptq-int4-group32-vision8": "--method gptq --group 32 --vision-bits 8",
    "awq-int4": "--method awq",
    "awq-int2": "--method awq --bits 2",
    "awq-uint4-alpha": "--method awq --asymmetric --alpha 0.5",
    "smoothquant": "--method smoothquant --bits 8",
    "smoothquant-gptq-alpha": "--method smoothquant+gptq --bits 8 --alpha 0.5",
}
MIXED: Final[Mapping[str, Mapping[str, str]]] = {
    "demo": {"mixed-3.5": "--method gptq --bpw 3.5", "mixed-budget": "--method gptq --budget 5.2MB"},
    "golden": {"mixed-3.25": "--method gptq --bpw 3.25", "mixed-budget-vision8": "--method gptq --budget 9.35MB"},
}
MERGED: Final[Mapping[str, str]] = {
    **{name: ROUNDED[name] for name in ("bits16", "int8", "int4", "w8a8")},
    **{f"{name}-upstream": f"{ROUNDED[name]} --merge-arithmetic upstream" for name in ("bits16", "int4")},
    **{name: CALIBRATED[name] for name in ("gptq-int4", "awq-int4", "smoothquant")},
    "gptq-int4-upstream": "--method gptq --merge-arithmetic upstream",
}
# What other programs' formats hold: symmetric, 4 or 8 bits, the same everywhere.
FOREIGN: Final[Mapping[str, str]] = {
    **{name: ROUNDED[name] for name in ("int8", "int4", "int4-group32")},
    "int4-decoder-only": "--decoder-only",
    **{name: CALIBRATED[name] for name in ("gptq-int8", "gptq-int4", "awq-int4")},
}
FOREIGN_MERGED: Final = {name: MERGED[name] for name in ("int4", "int4-upstream", "gptq-int4")}
QUICK: Final = {
    "demo/int4/artifact",
    "demo/gptq-int4/gptq",
    "adapter/int4-upstream/gptq",
    *(f"{source}/{bits}/{form}" for source in ("demo", "golden") for bits in ("int4", "int8") for form in ("gptq",)),
    "demo/int4/compressed-tensors",
}
ARTIFACTS: Final[Mapping[str, Mapping[str, str]]] = {
    "golden": {**ROUNDED, **CALIBRATED, **MIXED["golden"]},
    "demo": {**ROUNDED, **LARGE_GROUPS, **CALIBRATED, **MIXED["demo"]},
    "adapter": MERGED,
}
EXPORTS: Final = {
    case.name: case
    for form in ("artifact", "gptq", "compressed-tensors")
    for source, artifacts in ARTIFACTS.items()
    for recipe, words in (
        artifacts if form == "artifact" else FOREIGN_MERGED if source == "adapter" else FOREIGN
    ).items()
    for case in [ExportCase(source, recipe, tuple(words.split()), form, f"{source}/{recipe}/{form}" in QUICK)]
}
WORLD_1: Final = ("world1-expert", "world1-policy")
WORLD_2: Final = ("world2-expert", "world2-policy")
TORCH: Final = {"vision": "torch"}  # uint4 has no kernel in C
PACKED: Final = {**TORCH, "kernel": "torch-int4pack/bf16"}  # by name: "torch" takes the faster of two, by a stopwatch
TOKENS: Final = {
    case.name: case
    for case in (
        TokensCase("int4, first episodes", "demo/int4/artifact", WORLD_1, episodes=2, quick=True),
        TokensCase("reference, first episodes", None, WORLD_1, episodes=1, quick=True),
        TokensCase("int4", "demo/int4/artifact", WORLD_1),
        TokensCase("int4, world 2", "adapter/int4/artifact", WORLD_2),
        TokensCase("bits16", "demo/bits16/artifact", WORLD_1),
        TokensCase("bits16, world 2", "adapter/bits16/artifact", WORLD_2),
        TokensCase("int8", "demo/int8/artifact", WORLD_1, stride=8),
        TokensCase("w8a8", "demo/w8a8/artifact", WORLD_1, stride=8),
        TokensCase("int3", "demo/int3/artifact", WORLD_1, stride=32),
        TokensCase("int4-vision8", "demo/int4-vision8/artifact", WORLD_1, stride=32),
        TokensCase("mixed-3.5", "demo/mixed-3.5/artifact", WORLD_1, stride=32),
        TokensCase("reference", None, WORLD_1, stride=8),
        TokensCase("reference, fp32", None, WORLD_1, stride=64, options={"dtype": "fp32"}),
        TokensCase("int4, torch's operators", "demo/int4/artifact", WORLD_1, stride=64, options=PACKED),
        TokensCase("uint4, torch's operators", "demo/uint4/artifact", WORLD_1, stride=64, options=TORCH),
        TokensCase("int4, ONNX", "demo/int4/artifact", WORLD_1, stride=64, options={"vision": "onnx"}),
        TokensCase("int4, two threads", "demo/int4/artifact", WORLD_1, stride=32, threads=2),
    )
}
KEPT: Final = {case.export for case in TOKENS.values()}


class Workshop:
    """Makes what the cases need in a folder, each thing once, and remembers the hashes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._hashes = folder, dict[str, dict[str, dict[str, str]]]()

    def hashes(self, case: ExportCase) -> dict[str, dict[str, str]]:
        """`anywhere` and `here`, each file's SHA-256 by name."""
        if case.name not in self._hashes:
            made = self.export(case)
            self._hashes[case.name] = hashes(made, case.anywhere)
            if case.name not in KEPT:
                shutil.rmtree(made)
        return self._hashes[case.name]

    def export(self, case: ExportCase) -> Path:
        torch.set_num_threads(THREADS)
        return self._once(case.name, lambda out: command(["export", *self._words(case), "--out", str(out)]))

    def tokens(self, case: TokensCase) -> dict[str, Any]:
        """How many frames, one SHA-256 of all tokens and float64 actions a set, and the first tokens as they are."""
        found: dict[str, Any] = {"stride": case.stride, "threads": case.threads, "sets": {}}
        source = BASE if case.export is None else self.export(EXPORTS[case.export])
        torch.set_num_threads(case.threads)
        policy = edge_vla.load(source, "cpu", **case.options)  # type: ignore[arg-type]
        for name in case.sets:
            folder, digest, shown = self._frames(name, "evaluation", case.episodes), hashlib.sha256(), []
            frames = lines(folder)[:: case.stride]
            for frame in frames:
                with Image.open(folder / frame["image"]) as image:
                    action = policy.act(image, frame["instruction"], frame["unnorm_key"])
                digest.update(f"{action.tokens}".encode() + action.values.astype("<f8").tobytes())
                shown.append(" ".join(map(str, action.tokens)))
            found["sets"][name] = {"frames": len(frames), "sha256": digest.hexdigest(), "first": shown[:SHOWN]}
        return found

    def _words(self, case: ExportCase) -> list[str]:
        source = self._once("openvla-tiny", write_checkpoint) if case.source == "golden" else BASE
        words = [str(source), *case.words, *(["--adapter", str(ADAPTER)] if case.source == "adapter" else [])]
        words += ["--format", case.form] if case.form != "artifact" else []
        return words + (["--frames", str(self._calibration(case)), "--calibration-frames", "8"] * case.calibrated)

    def _frames(self, name: str, split: str, episodes: int | None) -> Path:
        folder = f"{name} {split} {episodes or 'all'}"
        return self._once(folder, lambda out: draw_frames(name, split, out, episodes))  # type: ignore[arg-type]

    def _calibration(self, case: ExportCase) -> Path:
        """Three episodes of the expert; for the golden checkpoint with words and a data set that it knows."""
        drawn = self._frames(f"world{2 if case.source == 'adapter' else 1}-expert", "calibration", 3)
        return self._once("golden frames", lambda out: renamed(drawn, out)) if case.source == "golden" else drawn

    def _once(self, name: str, make: Callable[[Path], object]) -> Path:
        path = self.folder / name.replace("/", " ")
        if not path.exists():
            make(path)
        return path


def renamed(drawn: Path, out: Path) -> None:
    shutil.copytree(drawn, out)
    known = golden_cases()[0]
    rows = [{**line, "instruction": known.instruction, "unnorm_key": known.unnorm_key} for line in lines(drawn)]
    (out / "frames.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "frames.jsonl").read_text(encoding="utf-8").splitlines()]


def command(words: list[str]) -> None:
    output = io.StringIO()
    try:
        with redirect_stderr(output):
            run_command(words)
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"edge-vla {' '.join(words)}: {output.getvalue()}") from end


def hashes(made: Path, anywhere: bool) -> dict[str, dict[str, str]]:
    """Files outside an artifact's hashes, and any evidence, are left out: they say how it was made."""
    found = {str(path.relative_to(made)): path for path in sorted(made.rglob("*")) if path.is_file()}
    found = {name: path for name, path in found.items() if not name.startswith("evidence/")}
    by_file, local = dict[str, str](), set[str]()
    if "manifest.json" in found:
        manifest = json.loads(found["manifest.json"].read_text(encoding="utf-8"))
        manifest.pop(ADDED)
        found = {name: found[name] for name in sorted(manifest["files"])}
        # The graph is what torch and onnxscript trace; golden frames are chosen by tokens.
        local = {MANIFEST, *(name for name in found if name.startswith(("vision.onnx", "golden/")))}
        whole = {**manifest, "golden": [{**frame, "noise": None} for frame in manifest["golden"]]}
        facts = {key: value for key, value in manifest.items() if key not in MEASURED}
        facts["layers"] = [{name: {**one, "error": None} for name, one in layer.items()} for layer in facts["layers"]]
        by_file = {name: hash_of_json(value) for name, value in ((MANIFEST_FACTS, facts), (MANIFEST, whole))}
    by_file |= {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()}
    if not anywhere:
        local |= set(by_file)
    return {
        "anywhere": {name: value for name, value in by_file.items() if name not in local},
        "here": {name: value for name, value in by_file.items() if name in local},
    }


def hash_of_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def machine() -> dict[str, str]:
    """What sums hang on: the processor, its instructions, the compiler of the C kernels, and versions."""
    info = Path("/proc/cpuinfo")
    rows = [line.partition(":") for line in info.read_text(encoding="utf-8").splitlines()] if info.exists() else []
    about = {key.strip(): value.strip() for key, _, value in rows}
    flags = (about.get("flags") or about.get("Features") or "").split()
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    output = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout if compiler else "none"
    return {
        "processor": " ".join(about.get(key, "") for key in ("model name", "cpu family", "model")).strip()
        or platform.machine(),
        "instructions": " ".join(sorted(flag for flag in flags if flag.startswith(INSTRUCTION_SETS))),
        "compiler": output.splitlines()[0],
        **{name: version(name) for name in PACKAGES},
    }


def record() -> dict[str, Any]:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(edge_vla.__file__).parent, capture_output=True)
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder))
        return {
            "note": NOTE,
            "commit": head.stdout.decode().strip(),
            "threads": THREADS,
            "machine": machine(),
            "exports": {name: workshop.hashes(case) for name, case in EXPORTS.items()},
            "tokens": {name: workshop.tokens(case) for name, case in TOKENS.items()},
        }


def show(name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder))
        return workshop.hashes(EXPORTS[name]) if name in EXPORTS else workshop.tokens(TOKENS[name])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.golden.make_recorded_bytes", description=__doc__)
    parser.add_argument("--only", metavar="NAME", choices=[*EXPORTS, *TOKENS], help="print this case, write nothing")
    parser.add_argument("--out", type=Path, default=RECORD)
    given = parser.parse_args()
    found = json.dumps(show(given.only) if given.only else record(), indent=1) + "\n"
    if given.only:
        print(found, end="")  # noqa: T201
    else:
        given.out.write_text(found, encoding="utf-8")


if __name__ == "__main__":
    main()
