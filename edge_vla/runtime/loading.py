"""From a path to a policy: opens an artifact or a checkpoint and chooses the backend that runs it.

An artifact's hashes and golden frames are checked before its first action.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, get_args

import torch

from edge_vla.artifact import MANIFEST, TOKENIZER, Artifact
from edge_vla.checkpoint import Arithmetic, open_checkpoint
from edge_vla.errors import BackendError, EdgeVLAWarning, UsageError
from edge_vla.openvla.evaluation import Preprocess, chosen
from edge_vla.runtime import gpu
from edge_vla.runtime.cpu.native.targets import split
from edge_vla.runtime.golden import replay
from edge_vla.runtime.kernels import AUTO, TORCH
from edge_vla.runtime.policy import Policy
from edge_vla.runtime.reference import load_reference
from edge_vla.runtime.types import Engine
from edge_vla.runtime.vision import VISIONS

HeadChoice = Literal["actions", "full"]
DTYPES: Final[Mapping[str, torch.dtype]] = {"bf16": torch.bfloat16, "fp32": torch.float32}


Backend = Callable[[Artifact, torch.dtype, torch.device, str, str], Engine]
"""Builds an engine from an artifact, with `--vision` and `--kernel` as the user gave them."""


def _cpu() -> Backend:
    from edge_vla.runtime.cpu.load import load_artifact

    return load_artifact


def _gpu() -> Backend:
    from edge_vla.runtime.gpu.load import load_artifact

    return load_artifact


# Imported when chosen: Triton takes a second. `cpu` also runs torch's operators on CUDA.
BACKENDS: Final[Mapping[str, Callable[[], Backend]]] = {"cpu": _cpu, "gpu": _gpu}


def load(
    path: str | Path,
    device: str = "auto",
    vision: str = AUTO,
    *,
    dtype: str = "bf16",
    head: HeadChoice = "actions",
    kernel: str = AUTO,
    adapters: Sequence[Path] = (),
    merge_arithmetic: Arithmetic = "fp32",
    prompt: str | None = None,
    statistics: str | Path | None = None,
    preprocess: Preprocess = "none",
    check: bool = True,
) -> Policy:
    """Open an artifact directory, or a checkpoint (directory, Hub id, `random:NAME`) as the reference.

    `prompt` and `statistics` replace a checkpoint's own, as in `open_checkpoint`; each doubt about it is warned of.
    `head="full"` decodes over the whole vocabulary as upstream does, from a checkpoint only. `preprocess` is what an
    evaluation script does to every image first (docs/evaluate.md). `check=False` skips hashes and golden frames, for a
    caller that has just checked them. Raises UsageError for a choice that does not fit, CheckpointError or
    ArtifactError for damaged files, BackendError for what this machine lacks, ResourceError where memory is too small.
    """
    place = _device(device)
    arithmetic = DTYPES[_one_of("--dtype", dtype, DTYPES)]
    _one_of("--head", head, get_args(HeadChoice))
    _one_of("--vision", split(vision)[0], VISIONS)
    chosen(preprocess)
    if (Path(path) / MANIFEST).exists():
        if adapters or head != "actions":
            raise UsageError(f"{path} is an artifact: it has no full head and its adapters are merged already")
        if prompt is not None or statistics is not None:
            raise UsageError(f"{path} is an artifact: its prompt and statistics were settled when it was exported")
        return _open_artifact(Path(path), arithmetic, place, vision, kernel, preprocess, check)
    if vision not in (AUTO, TORCH) or kernel != AUTO:
        raise UsageError(f"{path} is a checkpoint: --vision and --kernel choose among an artifact's backends")
    checkpoint = open_checkpoint(path, adapters, merge_arithmetic, prompt=prompt, statistics=statistics)
    for doubt in checkpoint.reading.doubts:
        warnings.warn(doubt, EdgeVLAWarning, 2)
    engine = load_reference(checkpoint, arithmetic, place, full_vocabulary=head == "full")
    return Policy(engine, checkpoint.config, checkpoint.tokenizer_json, preprocess)


def _open_artifact(
    directory: Path,
    dtype: torch.dtype,
    device: torch.device,
    vision: str,
    kernel: str,
    preprocess: Preprocess,
    check: bool,
) -> Policy:
    artifact = Artifact(directory)
    if check:
        artifact.verify()
    backend = "gpu" if kernel in gpu.NAMES or (kernel == AUTO and device.type == "cuda") else "cpu"
    engine = BACKENDS[backend]()(artifact, dtype, device, vision, kernel)
    policy = Policy(engine, artifact.manifest.config, artifact.text(TOKENIZER), preprocess)
    for note in replay(policy, directory, artifact.manifest.golden) if check else ():
        warnings.warn(f"golden frame {note}", EdgeVLAWarning, 3)
    return policy


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise BackendError("--device cuda: torch sees no CUDA device; check nvidia-smi and the torch build")
    return torch.device(name)


def _one_of(option: str, value: str, choices: Iterable[str]) -> str:
    if value not in choices:
        raise UsageError(f"{option} {value}: choose one of {list(choices)}")
    return value
