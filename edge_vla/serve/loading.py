"""From an artifact's directory to a policy that has proved itself: hashes, weights, warm-up, golden frames, its rate.

Runs on the engine's thread before the server is ready, and says how far it is. Knows no wire format and no loop.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_vla.artifact import MANIFEST, Artifact
from edge_vla.data import open_image
from edge_vla.data.frames import synthetic_image
from edge_vla.errors import EdgeVLAWarning, UsageError
from edge_vla.openvla.evaluation import Preprocess
from edge_vla.runtime import Policy, load, replay
from edge_vla.serve.limits import Limits
from edge_vla.serve.messages import Metadata
from edge_vla.version import __version__

STAGES: Final = ("verify", "load", "warm", "golden", "measure")
MEASURED: Final = 20  # actions, or as many as MEASURED_S hold
MEASURED_S: Final = 2.0
INSTRUCTION: Final = "pick up the object"

OnProgress = Callable[[str, float], None]
"""Called with a stage of STAGES and the share of all the work that is done, 0 to 1."""


@dataclass(frozen=True)
class Choices:
    """What a user may choose about how an artifact runs, as `edge_vla.load` takes it."""

    device: str = "auto"
    vision: str = "auto"
    kernel: str = "auto"
    dtype: str = "bf16"
    unnorm_key: str | None = None
    preprocess: Preprocess = "none"


@dataclass(frozen=True)
class Served:
    """A policy that is ready. `service_s` is what an action takes, `key` what `unnorm_key=None` means."""

    policy: Policy
    metadata: Metadata
    key: str
    bits: int
    service_s: float
    replicas: int = 1


def open_policy(
    directory: Path, choices: Choices, limits: Limits, on_progress: OnProgress, instructions: Sequence[str] = ()
) -> Served:
    """Raises what `edge_vla.load` raises, and UsageError for a directory that is no artifact or a doubtful key.

    UsageError too for `instructions` of more lengths than the engine keeps graphs for.
    """
    if not (directory / MANIFEST).exists():
        raise UsageError(f"{directory} is not an artifact: make one with edge-vla export, and serve its directory")
    on_progress("verify", 0.0)
    artifact = Artifact(directory)
    key = default_key(artifact, choices.unnorm_key)
    artifact.verify()
    on_progress("load", 0.2)
    policy = load(
        directory,
        choices.device,
        choices.vision,
        dtype=choices.dtype,
        kernel=choices.kernel,
        preprocess=choices.preprocess,
        check=False,
    )
    on_progress("warm", 0.6)
    warm(policy, [*instructions, INSTRUCTION], key, limits)
    policy.act(synthetic_image(0, policy.config.image.size), INSTRUCTION, key)
    golden = artifact.manifest.golden
    for done, frame in enumerate(golden):
        on_progress("golden", 0.8 + 0.1 * done / len(golden))
        for note in replay(policy, directory, [frame]):
            warnings.warn(f"golden frame {note}", EdgeVLAWarning, 2)
    on_progress("measure", 0.9)
    seconds = _measure(policy, directory, artifact, key)
    policy.warm(instructions, key)  # what the golden frames may have put out of its place
    on_progress("measure", 1.0)
    return Served(policy, _metadata(artifact, policy, key, limits), key, artifact.manifest.recipe.bits, seconds)


def warm(policy: Policy, instructions: Sequence[str], key: str, limits: Limits) -> None:
    """What the first action of a prompt's length would wait for.

    Room for the longest prompt and the widest action first: making it later would drop every graph there is.
    """
    longest = len(policy.prompter("x")) - 1 + limits.instruction_tokens
    widest = max(policy.config.statistics, key=policy.dims)
    policy.warm((), widest, longest=longest)
    policy.warm(instructions, key)


def default_key(artifact: Artifact, asked: str | None) -> str:
    """The data set that a robot means when it names none. UsageError where that is not clear."""
    known = artifact.manifest.config.statistics
    if asked is None and len([*known, *known.unsound]) > 1:
        raise UsageError(
            f"this artifact knows {len(known)} data sets: choose the robots' with --unnorm-key, one of {sorted(known)}"
        )
    return known.resolve(asked)


def _measure(policy: Policy, directory: Path, artifact: Artifact, key: str) -> float:
    """Seconds that an action takes, the median of a few."""
    golden = artifact.manifest.golden
    image = open_image(directory / golden[0].image) if golden else synthetic_image(0, policy.config.image.size)
    instruction = golden[0].instruction if golden else INSTRUCTION
    times = list[float]()
    while len(times) < MEASURED and sum(times) < MEASURED_S:
        began = time.perf_counter()
        policy.act(image, instruction, key)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _metadata(artifact: Artifact, policy: Policy, key: str, limits: Limits) -> Metadata:
    return Metadata(
        artifact=artifact.identity[:12],
        model=artifact.manifest.source.origin.rstrip("/").rpartition("/")[2],
        unnorm_keys=sorted(policy.config.statistics),
        default_unnorm_key=key,
        dims=policy.dims(key),
        image_size=policy.config.image.size,
        preprocess=policy.config.image.resize if policy.preprocess == "none" else policy.preprocess,
        max_image_pixels=limits.image_pixels,
        version=__version__,
    )
