"""Golden frames replayed: every step from the instruction to the action, beside what the artifact recorded.

Tokens alone do not show a wrong step: they were asked through the same prompt, picture and statistics, and margins
forgive small errors. So each step is compared by itself, before the next uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge_vla.artifact import GoldenFrame, GoldenSteps
from edge_vla.data import open_image
from edge_vla.errors import ArtifactError
from edge_vla.openvla import as_rgb, preprocess
from edge_vla.runtime.policy import Policy

PIXELS: Final = 2e-3  # of a quarter's mean: a processor's rounding moves less, another normalisation or resize more
ACTION: Final = 1e-9  # relative, or absolute below 1


def replay(policy: Policy, directory: Path, golden: Sequence[GoldenFrame]) -> list[str]:
    """Act on each golden frame; return a line for each whose tokens differ at a near-tie.

    ArtifactError for a step that is not as recorded: the prompt's ids, the pixel values, a token where the recorded
    margin is above the rounding noise, or what the recorded tokens mean as an action.
    """
    notes = []
    for frame in golden:
        image = open_image(directory / frame.image)
        found = steps(policy, image, frame.instruction, frame.unnorm_key, frame.tokens)
        if frame.steps is not None:
            _check_prompt(frame, found.prompt, frame.steps.prompt)
            _check_pixels(frame, found.pixels, frame.steps.pixels)
        notes += _check_tokens(frame, policy.act(image, frame.instruction, frame.unnorm_key, preprocess="none").tokens)
        if frame.steps is not None:
            _check_action(frame, found.action, frame.steps.action)
    return notes


def steps(policy: Policy, image: Image.Image, instruction: str, key: str, tokens: tuple[int, ...]) -> GoldenSteps:
    """Prompt, pixels and action of one frame, as `golden_steps` records them."""
    pixels = quarters(preprocess(as_rgb(image), policy.config.image))
    action = policy.config.statistics[key].unnormalise(policy.tokens.decode(tokens))
    rounded = tuple(tuple(round(float(mean), 5) for mean in channel) for channel in pixels)
    return GoldenSteps(policy.prompter(instruction), rounded, tuple(map(float, action)))


def quarters(pixels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Pixel values (channels, H, W) -> the mean of each quarter of each channel, (channels, 4), row by row."""
    halves = [np.array_split(half, 2, axis=2) for half in np.array_split(pixels.astype(np.float64), 2, axis=1)]
    return np.stack([part.mean(axis=(1, 2)) for row in halves for part in row], axis=1)


def _check_prompt(frame: GoldenFrame, found: tuple[int, ...], recorded: tuple[int, ...]) -> None:
    if found != recorded:
        same = next((i for i, (one, two) in enumerate(zip(found, recorded, strict=False)) if one != two), len(found))
        raise ArtifactError(
            f"golden frame {frame.image}: the prompt of {frame.instruction!r} is {len(found)} tokens, recorded "
            f"{len(recorded)}, different from {same} on: the tokenizer or the template is another; export again with "
            "this edge-vla"
        )


def _check_pixels(
    frame: GoldenFrame, found: tuple[tuple[float, ...], ...], recorded: tuple[tuple[float, ...], ...]
) -> None:
    moved = np.abs(np.asarray(found) - np.asarray(recorded)).max()
    if not moved <= PIXELS:
        raise ArtifactError(
            f"golden frame {frame.image}: pixel values are {moved:.4f} from the recorded in the mean of a quarter, "
            f"where rounding moves {PIXELS} at most: preprocessing is another; check the versions of Pillow and numpy"
        )


def _check_tokens(frame: GoldenFrame, found: tuple[int, ...]) -> list[str]:
    """A line if they differ at a near-tie; ArtifactError beyond."""
    if found == frame.tokens:
        return []
    where = next(i for i, pair in enumerate(zip(found, frame.tokens, strict=True)) if pair[0] != pair[1])
    line = f"{frame.image}: dimension {where} gave {found[where]}, recorded {frame.tokens[where]}"
    margin = f"margin {frame.margins[where]:.3f}, rounding noise {frame.noise:.3f}"
    if frame.margins[where] > frame.noise:
        raise ArtifactError(
            f"golden frame {line} ({margin}): a kernel or a weight is wrong on this machine; try --kernel reference"
        )
    return [f"{line}, a near-tie ({margin})"]


def _check_action(frame: GoldenFrame, found: tuple[float, ...], recorded: tuple[float, ...]) -> None:
    for where, (ours, theirs) in enumerate(zip(found, recorded, strict=True)):
        if not abs(ours - theirs) <= ACTION * max(1.0, abs(theirs)):
            raise ArtifactError(
                f"golden frame {frame.image}: its tokens mean {ours:.6g} in dimension {where}, recorded {theirs:.6g}: "
                "the statistics or their arithmetic are another; export again"
            )
