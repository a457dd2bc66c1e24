"""`edge-vla run`: one action from one image and one instruction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, cast

import typer
from rich.table import Table

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
from edge_vla.terminal import err, out


def run(
    path: Annotated[str, typer.Argument(help="An artifact, or a checkpoint as the reference.")],
    image: Annotated[Path, typer.Option(help="An image file.")],
    instruction: Annotated[str, typer.Option(help="What the robot should do.")],
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
    """One action from one image and one instruction."""
    from edge_vla.data import open_image
    from edge_vla.openvla.evaluation import described
    from edge_vla.runtime import load

    picture = open_image(image)
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
    action = policy.act(picture, instruction, unnorm_key)
    if as_json:
        print(json.dumps(action.to_json()))
        return
    table = Table("dimension", "token", "action", "margin")
    for i, token in enumerate(action.tokens):
        mark = " clipped: no action token" if action.clipped[i] else ""
        margin = f"{action.margins[i]:.2f}" if i < len(action.margins) else ""
        table.add_row(str(i), f"{token}{mark}", f"{action.values[i]:+.6f}", margin)
    out.print(table)
    kernels = ", ".join(f"{scheme}: {name}" for scheme, name in action.kernels.items())
    err.print(described(action.preprocess))
    err.print(f"{action.unnorm_key}, {action.timing_ms['total']:.1f} ms ({kernels})")
