"""`edge-vla run`: an action from an image and an instruction, or one each for the pictures of a folder or video."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer
from rich.table import Table

from edge_vla.errors import UsageError
from edge_vla.options import (
    ARITHMETICS,
    Adapters,
    AsJson,
    Device,
    Kernel,
    MergeArithmetic,
    Preprocessing,
    PromptChoice,
    StatisticsFile,
    UnnormKey,
    Vision,
    choice,
    script,
)
from edge_vla.terminal import err, interruptible, out

if TYPE_CHECKING:
    from edge_vla.data import Shown
    from edge_vla.openvla.evaluation import Preprocess
    from edge_vla.runtime import Action, Policy

Images = Annotated[
    Path | None,
    typer.Option(help="Instead of --image: a folder of pictures or frames, or a video; a JSON line for each."),
]


def run(
    path: Annotated[str, typer.Argument(help="An artifact, or a checkpoint as the reference.")],
    image: Annotated[Path | None, typer.Option(help="An image file.")] = None,
    instruction: Annotated[str | None, typer.Option(help="What the robot should do.")] = None,
    images: Images = None,
    unnorm_key: UnnormKey = None,
    dtype: Annotated[str, typer.Option(help="Arithmetic: bf16 or fp32.")] = "bf16",
    head: Annotated[
        str, typer.Option(help="actions, or full (checkpoints only): upstream's unconstrained decoding.")
    ] = "actions",
    adapter: Adapters = None,
    merge_arithmetic: MergeArithmetic = "fp32",
    prompt: PromptChoice = None,
    statistics: StatisticsFile = None,
    device: Device = "auto",
    vision: Vision = "auto",
    kernel: Kernel = "auto",
    preprocess: Preprocessing = "none",
    as_json: AsJson = False,
) -> None:
    """One action from one image and one instruction; or one each for the pictures of a folder or video.

    The policy is loaded once. Frames' own instructions and data sets count where none is given here.
    """
    shown = _pictures(image, images, instruction)
    from edge_vla.runtime import load

    policy = load(
        path,
        device,
        vision,
        dtype=dtype,
        head=cast(Literal["actions", "full"], choice("--head", head, ("actions", "full"))),
        kernel=kernel,
        adapters=adapter or (),
        merge_arithmetic=cast(Literal["fp32", "upstream"], choice("--merge-arithmetic", merge_arithmetic, ARITHMETICS)),
        prompt=prompt,
        statistics=statistics,
        preprocess=script(preprocess),
    )
    if images is not None:
        _each(policy, shown, instruction, unnorm_key)
        return
    action = policy.act(next(shown).image, instruction or "", unnorm_key)
    if as_json:
        print(json.dumps(action.to_json()))
    else:
        _show(action)


def _pictures(image: Path | None, images: Path | None, instruction: str | None) -> Iterator[Shown]:
    """What to act on; the first is opened before a policy is loaded for it. UsageError unless it is clear."""
    from edge_vla.data import Shown, open_image, series

    if (image is None) == (images is None):
        raise UsageError("give one of --image FILE and --images DIR|VIDEO")
    if images is not None:
        first, rest = next((found := series(images)), None), found
        if first is None:
            raise UsageError(f"--images {images} holds no pictures")
        if first.instruction is None and instruction is None:
            raise UsageError(f"--images {images} names no instructions: give --instruction, the same for all")
        return itertools.chain([first], rest)
    assert image is not None
    if instruction is None:
        raise UsageError('--image needs --instruction "what the robot should do"')
    return iter([Shown(image.name, open_image(image))])


def _each(policy: Policy, pictures: Iterator[Shown], instruction: str | None, unnorm_key: str | None) -> None:
    done = 0
    with interruptible(lambda: f"{done} actions were printed"):
        for one in pictures:
            words = one.instruction or "" if instruction is None else instruction
            action = policy.act(one.image, words, unnorm_key if unnorm_key is not None else one.unnorm_key)
            print(json.dumps({"image": one.name, "instruction": words, **action.to_json()}), flush=True)
            done += 1
    err.print(described(action.preprocess))
    err.print(f"{done} actions, the last in {action.timing_ms['total']:.1f} ms")


def _show(action: Action) -> None:
    table = Table("dimension", "token", "action", "margin")
    for i, (name, value) in enumerate(action.named.items()):
        mark = " clipped: no action token" if action.clipped[i] else ""
        margin = f"{action.margins[i]:.2f}" if i < len(action.margins) else ""
        table.add_row(name, f"{action.tokens[i]}{mark}", f"{value:+.6f}", margin)
    out.print(table)
    kernels = ", ".join(f"{scheme}: {name}" for scheme, name in action.kernels.items())
    err.print(described(action.preprocess))
    err.print(f"{action.unnorm_key}, {action.timing_ms['total']:.1f} ms ({kernels})")


def described(script: Preprocess) -> str:
    from edge_vla.openvla import evaluation

    return evaluation.described(script)
