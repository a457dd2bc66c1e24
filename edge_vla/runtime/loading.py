"""From a path to a policy: opens an artifact or a checkpoint and chooses the backend that runs it.

An artifact's hashes and golden frames are checked before its first action.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, get_args

import torch

from edge_vla.arguments import typed
from edge_vla.artifact import MANIFEST, TOKENIZER, Artifact, meant
from edge_vla.checkpoint import CONFIG, Arithmetic, open_checkpoint
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
from edge_vla.suggestions import choose

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


@typed()
def load(
    path: str | Path,
    device: str | torch.device = "auto",
    vision: str = AUTO,
    *,
    dtype: str | torch.dtype = "bf16",
    head: HeadChoice = "actions",
    kernel: str = AUTO,
    adapters: Sequence[str | Path] | str | Path = (),
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
    caller that has just checked them. `device` and `dtype` may be torch's own. Raises UsageError for a choice that does
    not fit, CheckpointError or ArtifactError for damaged files, BackendError for what this machine lacks, ResourceError
    where memory is too small.

        with edge_vla.load("openvla-int4") as policy:
            action = policy.act(image, "put the spoon on the towel", "bridge_orig")
    """
    place, given = _device(device), _paths(adapters)
    arithmetic = _dtype(dtype)
    _one_of("--head", head, get_args(HeadChoice))
    _one_of("--vision", split(vision)[0], VISIONS)
    chosen(preprocess)
    if is_artifact(path):
        if given or head != "actions":
            raise UsageError(f"{path} is an artifact: it has no full head and its adapters are merged already")
        if prompt is not None or statistics is not None:
            raise UsageError(f"{path} is an artifact: its prompt and statistics were settled when it was exported")
        return _open_artifact(Path(path), arithmetic, place, vision, kernel, preprocess, check)
    if vision not in (AUTO, TORCH) or kernel != AUTO:
        raise UsageError(f"{path} is a checkpoint: --vision and --kernel choose among an artifact's backends")
    checkpoint = open_checkpoint(path, given, merge_arithmetic, prompt=prompt, statistics=statistics)
    for doubt in checkpoint.reading.doubts:
        warnings.warn(doubt, EdgeVLAWarning, 3)
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
        warnings.warn(f"golden frame {note}", EdgeVLAWarning, 4)
    return policy


def is_artifact(path: str | Path) -> bool:
    """Whether an artifact lies there. UsageError for what can be no path, and for a folder around an artifact."""
    try:
        if not str(path):
            raise ValueError("it is empty")
        directory = Path(path)
        if (directory / MANIFEST).exists():
            return True
        around = directory.is_dir() and not (directory / CONFIG).exists()
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise UsageError(
            f"{str(path)!r:.80} is no path ({reason}): give a directory, or a Hub id (org/name)"
        ) from error
    if around and (found := meant(directory)):
        raise UsageError(f"{path} is neither an artifact nor a checkpoint{found}")
    return False


def _paths(adapters: Sequence[str | Path] | str | Path) -> tuple[Path, ...]:
    """One path stands for a list of one."""
    return tuple(map(Path, [adapters] if isinstance(adapters, str | Path) else adapters))


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    return DTYPES[_one_of("--dtype", str(dtype), DTYPES)]


def _device(device: str | torch.device) -> torch.device:
    name = str(device).removesuffix(":0")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda:"):
        raise UsageError(f"--device {name}: set CUDA_VISIBLE_DEVICES={name[5:]} and give cuda; a policy uses the first")
    if name not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise BackendError("--device cuda: torch sees no CUDA device; check nvidia-smi and the torch build")
    return torch.device(name)


def _one_of(option: str, value: str, choices: Iterable[str]) -> str:
    if value not in choices:
        raise UsageError(f"{option} {value}: {choose(value, choices)}")
    return value
